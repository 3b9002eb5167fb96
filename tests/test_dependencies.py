"""Data flows one way (docs/architecture.md), and torchvision stays out."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import alignvlm

ROOT = Path(alignvlm.__file__).parent
LAYERS = (
    {"errors"},
    {"gguf_weights"},
    {"tiling", "hub", "reader"},
    {"config"},
    {"ops"},
    {"connectors"},
    {"losses", "dropping"},
    {"outputs"},
    {"model", "image_processor"},
    {"generation", "processor", "hosts"},
    {"compose"},
    {"shipped"},
    {"__init__"},
    {"data"},
    {"train", "eval", "analysis", "ask", "convert"},
    {"cite", "embed", "finetune"},
    {"serve"},
    {
        "cli_ask",
        "cli_convert",
        "cli_data",
        "cli_demo",
        "cli_eval",
        "cli_finetune",
        "cli_prune",
        "cli_scale",
        "cli_serve",
    },
    {"cli", "__main__"},
)
"""A module imports from earlier layers and from its own room."""
RANK = {room: rank for rank, rooms in enumerate(LAYERS) for room in rooms}


def room_of(module: str) -> str:
    """``alignvlm.data.chat`` -> ``data``; the package itself -> ``__init__``."""
    return ([*module.split("."), "__init__"])[1]


def imports(file: Path) -> Iterator[tuple[int, str]]:
    """Line and full name of everything a file imports from this package, also in functions."""
    parts = ["alignvlm", *file.relative_to(ROOT).with_suffix("").parts]
    package = parts[:-1]
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            name = ".".join([*base, *([node.module] if node.module else [])])
            # `from .. import config` names a module, `from .. import __version__` does not
            found = [
                f"{name}.{alias.name}" if is_module(name, alias.name) else name
                for alias in node.names
            ]
        else:
            continue
        yield from ((node.lineno, name) for name in found if name.split(".")[0] == "alignvlm")


def is_module(package: str, name: str) -> bool:
    folder = ROOT.joinpath(*package.split(".")[1:])
    return (folder / f"{name}.py").is_file() or (folder / name).is_dir()


def test_imports_point_one_way():
    wrong = []
    for file in sorted(ROOT.rglob("*.py")):
        own = file.relative_to(ROOT).with_suffix("").parts[0]
        where = file.relative_to(ROOT)
        if own not in RANK:
            wrong.append(f"{where}: room {own!r} has no place in LAYERS")
            continue
        for line, module in imports(file):
            other = room_of(module)
            if other not in RANK:
                wrong.append(f"{where}:{line}: {module} has no place in LAYERS")
            elif other != own and RANK[other] >= RANK[own]:
                wrong.append(f"{where}:{line}: {own} must not import {module}")
    assert not wrong, "\n".join(wrong)


def test_the_walk_sees_imports():
    found = {module for _, module in imports(ROOT / "processor.py")}
    assert "alignvlm.tiling" in found
    assert "alignvlm.image_processor" in found
    assert room_of("alignvlm") == "__init__"
    assert room_of("alignvlm.data.chat") == "data"


def dependency_tree(name: str) -> set[str]:
    """Names of all installed distributions that ``name`` needs, with all of its own extras."""
    todo = [(name, frozenset(metadata.distribution(name).metadata.get_all("Provides-Extra") or ()))]
    seen: set[tuple[str, frozenset[str]]] = set()
    while todo:
        entry = todo.pop()
        if entry in seen:
            continue
        seen.add(entry)
        try:
            requires = metadata.distribution(entry[0]).requires or []
        except metadata.PackageNotFoundError:
            continue
        for line in requires:
            need = Requirement(line)
            extras = entry[1] or {""}
            if need.marker is None or any(need.marker.evaluate({"extra": e}) for e in extras):
                todo.append((canonicalize_name(need.name), frozenset(need.extras)))
    return {found for found, _ in seen}


def test_torchvision_is_not_in_the_dependency_tree():
    try:
        tree = dependency_tree("alignvlm")
    except metadata.PackageNotFoundError:
        pytest.skip("alignvlm is not installed")
    assert {"torch", "transformers", "pillow"} <= tree
    assert "torchvision" not in tree


def test_importing_the_package_imports_no_torchvision():
    code = "import sys, alignvlm; print('torchvision' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "False", done.stderr
