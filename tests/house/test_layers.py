"""Rooms one would look for: data flows one way, and no name stands for two things."""

from __future__ import annotations

import ast
from collections import defaultdict

import pytest
from tests.house import layers
from tests.house.layers import PAGE, RANK, ROOT, imports, room_of, written

FILES = sorted(ROOT.rglob("*.py"))
TOP_MODULES = 5


def test_imports_point_one_way():
    wrong = []
    for file in FILES:
        own = file.relative_to(ROOT).with_suffix("").parts[0]
        where = file.relative_to(ROOT)
        if own not in RANK:
            wrong.append(f"{where}: room {own!r} has no place in LAYERS")
            continue
        for line, module, _ in imports(file):
            other = room_of(module)
            if other not in RANK:
                wrong.append(f"{where}:{line}: {module} has no place in LAYERS")
            elif other != own and RANK[other] >= RANK[own]:
                wrong.append(f"{where}:{line}: {own} must not import {module}")
    assert not wrong, "\n".join(wrong)


def test_the_walk_sees_imports():
    found = {module for _, module, _ in imports(ROOT / "processing" / "processor.py")}
    assert "alignvlm.tiling" in found
    assert "alignvlm.processing.image_processor" in found
    assert room_of("alignvlm") == "__init__"
    assert room_of("alignvlm.data.encode") == "data"


def test_modules_of_a_room_form_no_circle():
    graph = defaultdict(set)
    for file in FILES:
        parts = file.relative_to(ROOT).with_suffix("").parts
        name = ".".join(("alignvlm", *parts))
        for _, module, _ in imports(file):
            is_file = ROOT.joinpath(*module.split(".")[1:]).with_suffix(".py").is_file()
            graph[name].add(module if is_file else f"{module}.__init__")
    done: set[str] = set()

    def walk(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join((*path[path.index(name) :], name))
        if name not in done:
            for other in sorted(graph[name]):
                walk(other, (*path, name))
            done.add(name)

    for name in sorted(graph):
        walk(name, ())


def test_private_names_stay_in_their_module():
    wrong = [
        f"{file.relative_to(ROOT)}:{line}: {module}.{name}"
        for file in FILES
        for line, module, name in imports(file)
        if name.startswith("_") and not name.startswith("__")
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("kind", ["module", "class"])
def test_a_name_stands_for_one_thing(kind):
    places = defaultdict(list)
    for file in FILES:
        where = str(file.relative_to(ROOT))
        if kind == "module":
            if file.stem != "__init__":
                places[file.stem].append(where)
            continue
        for node in ast.parse(file.read_text("utf-8")).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(where)
    twice = {name: found for name, found in places.items() if len(found) > 1}
    assert not twice


def test_the_top_level_holds_rooms_not_modules():
    modules = {file.name for file in ROOT.glob("*.py")} - {"__init__.py"}
    assert len(modules) <= TOP_MODULES, modules


def test_the_page_shows_the_rule():
    page = PAGE.read_text("utf-8")
    assert layers.START in page
    assert page == written(page), "run: python -m tests.house.layers"
