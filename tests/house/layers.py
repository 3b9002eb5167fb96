"""The rule of who may import whom, and the table of it in docs/architecture.md.

python -m tests.house.layers     # writes the table
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
ROOT = REPOSITORY / "src" / "alignvlm"
PAGE = REPOSITORY / "docs" / "architecture.md"
START, END = "<!-- layers: python -m tests.house.layers -->\n", "<!-- /layers -->\n"
LAYERS = (
    ("errors", "files", "deferred"),
    ("weights", "tiling", "reader"),
    ("ops",),
    ("connectors",),
    ("model",),
    ("processing",),
    ("compose", "transplant"),
    ("__init__",),
    ("documents",),
    ("data",),
    ("vocabulary", "inference"),
    ("eval",),
    ("train",),
    ("finetune",),
    ("serve", "demo", "batch", "plugins"),
    ("cli",),
    ("__main__",),
)
"""A module imports from earlier layers and from its own room."""
RANK = {room: rank for rank, rooms in enumerate(LAYERS) for room in rooms}


def room_of(module: str) -> str:
    """``alignvlm.data.encode`` -> ``data``; the package itself -> ``__init__``."""
    return ([*module.split("."), "__init__"])[1]


def imports(file: Path) -> Iterator[tuple[int, str, str]]:
    """Line, module and name of everything a file imports from this package, also in functions."""
    parts = ["alignvlm", *file.relative_to(ROOT).with_suffix("").parts]
    package = parts[:-1]
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found = [(alias.name, "") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            name = ".".join([*base, *([node.module] if node.module else [])])
            # `from .. import tiling` names a module, `from .. import __version__` does not
            found = [
                (f"{name}.{alias.name}", "") if is_module(name, alias.name) else (name, alias.name)
                for alias in node.names
            ]
        else:
            continue
        yield from ((node.lineno, *pair) for pair in found if pair[0].split(".")[0] == "alignvlm")


def is_module(package: str, name: str) -> bool:
    """Whether ``name`` is a module of that package, not something inside it."""
    folder = ROOT.joinpath(*package.split(".")[1:])
    return (folder / f"{name}.py").is_file() or (folder / name).is_dir()


def purpose(room: str) -> str:
    """First line of a room's docstring."""
    path = ROOT / f"{room}.py"
    path = path if path.is_file() else ROOT / room / "__init__.py"
    return (ast.get_docstring(ast.parse(path.read_text("utf-8"))) or "").splitlines()[0]


def table() -> str:
    """The layers as Markdown: what is below is imported by what stands above it."""
    lines = ["| layer | room | what lives there |", "| --- | --- | --- |"]
    for rank, rooms in enumerate(LAYERS):
        for room in rooms:
            name = room if (ROOT / room).is_dir() else f"{room}.py"
            lines.append(f"| {rank} | `{name}{'/' * (ROOT / room).is_dir()}` | {purpose(room)} |")
    return "\n".join(lines) + "\n"


def written(text: str) -> str:
    """The page with today's table."""
    before, _, rest = text.partition(START)
    _, _, after = rest.partition(END)
    return f"{before}{START}\n{table()}\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text("utf-8")), "utf-8")
