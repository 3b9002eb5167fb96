"""What the package may not depend on."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


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
