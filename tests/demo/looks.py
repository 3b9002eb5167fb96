"""Whether what is on the screen can be hit with a finger, be read, and is said in plain words."""

from __future__ import annotations

import re
from typing import Any

LEAST_SIDE = 24
"""px, WCAG 2.2 (2.5.8)."""
LEAST_CONTRAST = 4.5
"""WCAG 2.2 (1.4.3), for text of any size."""

# A radio button is chosen through its label, and the file field through buttons named after it.
_SMALL = """least => [...document.querySelectorAll(
    'button, a[href], label.button, input, summary, #lines li:not(.empty)')]
    .filter(one => one.offsetParent && one.id !== 'file' && !one.classList.contains('skip'))
    .filter(one => {
        const hit = one.type === 'radio' ? one.closest('label') : one;
        const { width, height } = hit.getBoundingClientRect();
        return width < least || height < least;
    }).map(one => one.outerHTML)"""

# Colours are mixed as the browser does: a canvas turns any notation into numbers, and what lies
# behind half-transparent backgrounds shows through. What is disabled need not stand out.
_FAINT = """least => {
    const canvas = document.createElement('canvas');
    canvas.width = canvas.height = 1;
    const pen = canvas.getContext('2d', { willReadFrequently: true });
    const numbers = color => {
        pen.clearRect(0, 0, 1, 1);
        pen.fillStyle = color;
        pen.fillRect(0, 0, 1, 1);
        const [r, g, b, a] = pen.getImageData(0, 0, 1, 1).data;
        return [r, g, b, a / 255];
    };
    const over = ([r, g, b, a], below) =>
        [r, g, b].map((value, i) => value * a + below[i] * (1 - a));
    const ground = one => one
        ? over(numbers(getComputedStyle(one).backgroundColor), ground(one.parentElement))
        : numbers('Canvas').slice(0, 3);
    const opacity = one => one
        ? Number(getComputedStyle(one).opacity) * opacity(one.parentElement) : 1;
    const light = color => {
        const [r, g, b] = color.map(value => value / 255)
            .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const contrast = (one, style) => {
        const behind = ground(one), ink = numbers(style.color);
        ink[3] *= opacity(one);
        const [a, b] = [light(over(ink, behind)), light(behind)].sort((x, y) => y - x);
        return (a + 0.05) / (b + 0.05);
    };
    const written = one => one.matches('input[type=text]') ? one.value || one.placeholder
        : [...one.childNodes].filter(n => n.nodeType === 3).map(n => n.data.trim()).join('');
    const all = [...document.body.querySelectorAll('*')].filter(one => written(one)
        && one.checkVisibility() && !one.closest(':disabled, a:not([href]), script'));
    const told = all.map(one => {
        const empty = one.matches('input') && !one.value;
        return [written(one), contrast(one, getComputedStyle(one, empty ? '::placeholder' : null))];
    });
    return { seen: told.length, faint: told.filter(([, ratio]) => ratio < least) };
}"""

# Also what is hidden now, and what only a screen reader or a pointer finds.
_WORDS = """() => [document.body.textContent, ...[...document.querySelectorAll('*')]
    .flatMap(one => ['aria-label', 'title', 'alt', 'placeholder']
    .map(name => one.getAttribute(name) || ''))].join('\\n')"""
_NOT_PLAIN = re.compile(r"\bnats?\b|\b1 (?:pages|jobs|cells|tokens|lines|boxes)\b", re.IGNORECASE)


def small_targets(page: Any) -> list[str]:
    """What is too small for a finger, as HTML."""
    return page.evaluate(_SMALL, LEAST_SIDE)


def faint_texts(page: Any) -> list[tuple[str, float]]:
    """Texts that hardly stand out against what is behind them, and their contrast."""
    told = page.evaluate(_FAINT, LEAST_CONTRAST)
    assert told["seen"] > 10, "hardly any text was looked at"
    return told["faint"]


def odd_words(page: Any) -> list[str]:
    """Words that are not plain, anywhere on the page, seen or not."""
    return _NOT_PLAIN.findall(page.evaluate(_WORDS))


def oddities(page: Any) -> dict[str, list[Any]]:
    """What is faint in the light or in the dark, and what is small on a screen or on a phone."""
    found: dict[str, list[Any]] = {}
    size = page.viewport_size
    for scheme in ("dark", "light"):
        page.emulate_media(color_scheme=scheme)
        found[scheme] = faint_texts(page)
    for width in (390, size["width"]):
        page.set_viewport_size({**size, "width": width})
        found[f"{width} px"] = small_targets(page)
    return {state: odd for state, odd in found.items() if odd}
