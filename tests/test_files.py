"""Files written whole or not at all, whatever goes wrong."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from safetensors import SafetensorError

from alignvlm.files import replacing

FULL = [
    OSError(errno.ENOSPC, "No space left on device"),
    SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0"),
]


@pytest.mark.parametrize("error", FULL, ids=lambda error: type(error).__name__)
def test_a_full_disk_is_an_os_error_and_leaves_nothing(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(OSError) as caught, replacing(tmp_path / "model") as partial:
        partial.mkdir()
        (partial / "half").write_bytes(b"half")
        raise error
    assert caught.value.errno == errno.ENOSPC
    assert list(tmp_path.iterdir()) == []


def test_other_errors_stay_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="shape"), replacing(tmp_path / "model"):
        raise RuntimeError("shape")
