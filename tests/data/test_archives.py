"""Archives of images: no member leads out, no link is followed, and damage is one line."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from alignvlm.data.hub.archives import archives_in, inside, members, reading, unpacked
from alignvlm.data.hub.image_files import ImageFiles, images_at
from alignvlm.errors import DataError


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALIGNVLM_HOME", str(tmp_path / "home"))


def png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (3, 2)).save(buffer, "PNG")
    return buffer.getvalue()


def make_tar(path: Path, names: list[str], mode: str = "w", kind: bytes = tarfile.REGTYPE) -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name in names:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            data = png() if kind == tarfile.REGTYPE else b""
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def make_zip(path: Path, names: list[str]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, png())
    return path


ESCAPES = ["../out.png", "/out.png", "a/../../out.png", "..\\out.png", "C:\\out.png"]


@pytest.mark.parametrize("name", ESCAPES)
@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_members_that_lead_out_are_refused(name: str, kind: str, tmp_path: Path) -> None:
    make: Any = make_tar if kind == "tar" else make_zip
    path = make(tmp_path / f"a.{kind}", ["ok.png", name])
    with pytest.raises(DataError, match="leads out of it, refused") as caught:
        unpacked([[path]], "org/set")
    assert str(caught.value).startswith(str(path))
    assert not list(tmp_path.rglob("out.png"))
    assert not list((tmp_path / "home" / "data").glob("*.partial"))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
def test_links_are_refused(kind: bytes, tmp_path: Path) -> None:
    path = make_tar(tmp_path / "a.tar", ["link.png"], kind=kind)
    with pytest.raises(DataError, match="is a link or a device, refused"):
        list(members([path]))


@pytest.mark.parametrize("name", ESCAPES[:3])
def test_rows_cannot_name_files_outside(name: str, tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "out.png").write_bytes(png())
    with pytest.raises(DataError, match="leads out of it, refused"):
        ImageFiles("set", [tmp_path / "set"]).find(name)


def test_inside() -> None:
    assert inside("./a//b.png", Path("x")) == "a/b.png"


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_damaged_archives_are_one_line(mode: str, tmp_path: Path) -> None:
    path = make_tar(tmp_path / "a.tar.gz", [f"{i}.png" for i in range(40)], mode)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])
    with pytest.raises(DataError, match=r"a\.tar\.gz: the archive is damaged or incomplete"):
        unpacked([[path]], "set")
    path.write_bytes(b"no archive at all")
    with pytest.raises(DataError, match="damaged or incomplete"):
        list(members([path]))


def test_parts_of_one_archive(tmp_path: Path) -> None:
    data = make_tar(tmp_path / "whole", ["x/0.png", "x/1.png"], "w:gz").read_bytes()
    for part in range(3):
        size = len(data) // 3 + 1
        (tmp_path / f"partial-imgs{part:02d}").write_bytes(data[part * size : (part + 1) * size])
    (parts,) = archives_in(tmp_path, ["partial-imgs*", "none*"])
    assert [path.name[-2:] for path in parts] == ["00", "01", "02"]
    assert [(name, file.read() == png()) for name, file in members(parts)] == [
        ("x/0.png", True),
        ("x/1.png", True),
    ]
    with pytest.raises(DataError, match="damaged or incomplete"), reading(parts[0]):
        [file.read() for _, file in members(parts[:2])]


def test_images_of_a_folder_an_archive_and_neither(tmp_path: Path) -> None:
    folder = tmp_path / "deep"
    (folder / "inner").mkdir(parents=True)
    (folder / "inner" / "one.jpg").write_bytes(png())
    assert images_at(folder, "a").find("one") == folder / "inner" / "one.jpg"
    (folder / "inner" / "set.1.png").write_bytes(png())
    found = images_at(folder, "a")
    assert found.find("set.1") == found.find("train/set.1.png") == folder / "inner" / "set.1.png"
    archive = make_zip(tmp_path / "a.zip", ["train/two.png"])
    assert images_at(archive, "a").find("two").read_bytes() == png()
    with pytest.raises(DataError, match=r"no image three below .*home"):
        images_at(archive, "a").find("three")
    (tmp_path / "text.txt").touch()
    for place, reason in [("text.txt", "not an archive of images"), ("no", "no such folder")]:
        with pytest.raises(DataError, match=reason):
            images_at(tmp_path / place, "a")
