"""What an SVG shows. Its bytes are no measure: matplotlib's layout differs in the last bit from run
to run, and the ids of clip paths and markers are hashes of such numbers.
"""

from __future__ import annotations

import re
from typing import Any
from xml.etree import ElementTree

NUMBER = re.compile(r"(?<![\w#.])-?\d+(?:\.\d+)?(?:e[-+]?\d+)?")
GEOMETRY = ("d", "x", "y", "width", "height", "viewBox", "points", "transform")
LOOK = ("style", *GEOMETRY)
NEAR = 0.01
"""In points: no eye sees it, and it is far above what rounding moves."""

Element = tuple[str, str, tuple[str, ...]]


def shown(svg: bytes) -> tuple[list[Element], list[float]]:
    """Each element with its text and look, in order, and the numbers of their geometry."""
    elements: list[Element] = []
    numbers: list[float] = []
    for element, name in _drawn(ElementTree.fromstring(svg)):
        look = []
        for key in LOOK:
            value = element.get(key, "")
            if key in GEOMETRY:
                numbers += map(float, NUMBER.findall(value))
                value = " ".join(NUMBER.sub("0", value).split())
            look.append(value)
        elements.append((name, (element.text or "").strip(), tuple(look)))
    return elements, numbers


def texts(svg: bytes) -> list[str]:
    """Titles, tick labels and legends, in order."""
    return [text for name, text, _ in shown(svg)[0] if name in ("text", "tspan") and text]


def differences(one: bytes, other: bytes) -> list[Any]:
    """What two pictures show differently; an empty list if the eye sees no difference."""
    (parts, places), (other_parts, other_places) = shown(one), shown(other)
    if parts != other_parts:
        pairs = [pair for pair in zip(parts, other_parts, strict=False) if pair[0] != pair[1]]
        return [(len(parts), len(other_parts)), *pairs]
    pairs = zip(places, other_places, strict=True)
    return [pair for pair in pairs if abs(pair[0] - pair[1]) > NEAR]


def _drawn(element: ElementTree.Element) -> Any:
    """Elements with their names, without what tells of the program that drew them."""
    name = element.tag.rpartition("}")[2]
    if name == "metadata":
        return
    yield element, name
    for child in element:
        yield from _drawn(child)
