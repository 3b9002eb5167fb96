"""What stands where on a rendered page: one function per layout.

Each ``draw_*`` writes on a canvas and returns ``(question, answer)`` pairs about what it drew.
Anything that does not fit is left out before questions are made, so answers are always on the page.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from typing import Any

from numpy.random import Generator

from .canvas import Canvas
from .corpus import MONTHS, Table, words

Facts = list[tuple[str, str]]

FIRST_NAMES = words(
    "Ada Amir Ana Anders Asha Boris Carla Chen Clara Dana David Diego Elena Emil Esther Felix "
    "Grace Hana Hugo Ines Ivan Jane Jonas Julia Kofi Lara Leo Lin Lucia Maya Mehmet Mira Noah "
    "Olga Omar Pablo Priya Rosa Ruth Samir Sara Sven Tara Thomas Uma Victor Wei Yuki Zoe"
)
LAST_NAMES = words(
    "Adler Bauer Becker Bianchi Brown Carter Costa Diaz Dubois Evans Fischer Garcia Gupta Haddad "
    "Hansen Hill Ito Jansen Johnson Keller Khan Kim Kowalski Larsen Lee Lopez Meyer Moreau Mwangi "
    "Nguyen Novak Okafor Olsen Park Patel Petrov Quinn Rahman Reyes Rossi Sato Silva Singh Smith "
    "Tanaka Torres Vogel Walker Weber Wong Young"
)
CITIES = words(
    "Accra Bergen Bologna Boston Bristol Busan Cairo Cork Dakar Delhi Denver Dublin Geneva Ghent "
    "Hanoi Havana Houston Kyoto Lagos Leeds Lima Lisbon Lyon Manila Milan Mumbai Nairobi Oslo "
    "Ottawa Porto Prague Quito Riga Rome Seoul Sofia Tampa Tartu Tunis Turin Utrecht Vienna Zurich"
)
STREETS = words("Main Oak Park Mill Church High Station Lake Hill River Garden King Market")
GOODS = words(
    "Apples,Bread,Butter,Cheese,Coffee,Eggs,Flour,Green tea,Honey,Juice,Lamp,Lemons,Milk,Mug,"
    "Notebook,Olives,Onions,Orange juice,Paper,Pasta,Pencils,Pepper,Potatoes,Rice,Salt,Soap,Socks,"
    "Soup,Sugar,Tea towel,Tomatoes,Toothpaste,Towel,Umbrella,Water,Wine,Yoghurt",
    ",",
)
SHOPS = words("Market,Store,Cafe,Bakery,Books,Foods,Pharmacy,Deli,Hardware,Garden Shop", ",")
TITLES = words(
    "Invoice,Order Form,Delivery Note,Registration,Application,Account Details,Customer Record,"
    "Booking,Statement,Contact Sheet,Service Report",
    ",",
)


def pick(rng: Generator, choices: Sequence[Any]) -> Any:
    """One of ``choices``."""
    return choices[int(rng.integers(len(choices)))]


# ---------------------------------------------------------------------------------- made-up values


def random_word(rng: Generator) -> str:
    """A string no language model can guess: letters, digits, mixed, or a number."""
    kind, size = int(rng.integers(6)), int(rng.integers(1, 9))
    if kind == 0:
        return amount(rng)
    pools = (string.digits, string.ascii_lowercase, string.ascii_lowercase, string.ascii_uppercase)
    pool = pools[kind - 1] if kind < 5 else string.ascii_letters + string.digits + "-/.#"
    word = "".join(pool[i] for i in rng.integers(len(pool), size=size))
    return word.capitalize() if kind == 3 else word


def scramble(rng: Generator, text: str, fraction: float) -> str:
    """Replace that fraction of the words of ``text`` by random strings."""
    if fraction <= 0:
        return text
    return " ".join(random_word(rng) if rng.random() < fraction else w for w in text.split())


def amount(rng: Generator) -> str:
    """Money with two decimals, between ``10**0.5`` and ``10**4``."""
    return f"{10 ** rng.uniform(0.5, 4.0):,.2f}"


def digits(rng: Generator, pattern: str) -> str:
    """``#`` becomes a digit, ``@`` a capital letter, anything else stays."""
    pools = {"#": string.digits, "@": string.ascii_uppercase}
    return "".join(pick(rng, pools[c]) if c in pools else c for c in pattern)


def date(rng: Generator) -> str:
    """A date of 1990 to 2030 in one of seven ways of writing it."""
    year, month, day = (int(rng.integers(a, b)) for a, b in ((1990, 2031), (1, 13), (1, 29)))
    name = MONTHS[month - 1]
    forms = (
        f"{year}-{month:02}-{day:02}",
        f"{day:02}/{month:02}/{year}",
        f"{day:02}.{month:02}.{year}",
        f"{day:02}.{month:02}.{year % 100:02}",
        f"{day} {name} {year}",
        f"{name[:3]} {day}, {year}",
        f"{day}-{name[:3]}-{year}",
    )
    return pick(rng, forms)


def person(rng: Generator) -> str:
    """First and last name, now and then with an initial between them."""
    middle = f" {pick(rng, string.ascii_uppercase)}." if rng.random() < 0.2 else ""
    return f"{pick(rng, FIRST_NAMES)}{middle} {pick(rng, LAST_NAMES)}"


def _money(rng: Generator) -> str:
    value = amount(rng)
    return pick(rng, (value, value, f"${value}", f"{value} EUR", f"USD {value}"))


def _company(rng: Generator) -> str:
    return f"{pick(rng, LAST_NAMES)} {pick(rng, ('Ltd', 'Inc.', '& Sons', 'GmbH', 'Group', 'Co.'))}"


def _email(rng: Generator) -> str:
    host = pick(rng, ("mail.com", "post.net", "example.org"))
    user = pick(rng, FIRST_NAMES) + pick(rng, (".", "_", "")) + pick(rng, LAST_NAMES)
    return f"{user}@{host}".lower()


def _address(rng: Generator) -> str:
    return f"{rng.integers(1, 400)} {pick(rng, STREETS)} {pick(rng, ('St', 'Rd', 'Ave', 'Lane'))}"


def _coded(*patterns: str) -> Any:
    return lambda rng: digits(rng, pick(rng, patterns))


# name asked for -> (labels printed, value)
FIELDS: dict[str, tuple[tuple[str, ...], Any]] = {
    "invoice number": (
        ("Invoice number", "Invoice No.", "Invoice #"),
        _coded("INV-#####", "######", "@@-####", "20##/####"),
    ),
    "order number": (("Order number", "Order No.", "Order #"), _coded("#######", "@####-##")),
    "reference": (("Reference", "Ref.", "Ref"), _coded("@@@####", "##-@@-###", "R######")),
    "account": (("Account", "Account no.", "Acct"), _coded("#### #### ##", "########")),
    "date": (("Date",), date),
    "due date": (("Due date", "Due"), date),
    "date of birth": (("Date of birth", "Born"), date),
    "name": (("Name", "Full name"), person),
    "manager": (("Manager",), person),
    "contact": (("Contact", "Contact person"), person),
    "company": (("Company",), _company),
    "total": (("Total", "TOTAL", "Total amount"), _money),
    "tax": (("Tax", "VAT"), _money),
    "balance": (("Balance",), _money),
    "city": (("City", "Town"), lambda rng: pick(rng, CITIES)),
    "address": (("Address", "Street"), _address),
    "postcode": (("Postcode", "ZIP", "Post code"), _coded("#####", "@@# #@@", "####")),
    "phone number": (("Phone", "Tel.", "Phone number"), _coded("+## ### ####", "(###) ###-####")),
    "email": (("Email", "E-mail"), _email),
    "quantity": (("Quantity", "Qty"), lambda rng: str(rng.integers(1, 1000))),
    "flight": (("Flight",), _coded("@@###", "@@####")),
    "time": (("Time",), lambda rng: f"{rng.integers(24):02}:{rng.integers(60):02}"),
    "serial number": (("Serial number", "Serial no.", "S/N"), _coded("@@##-####", "##########")),
}


def ask(rng: Generator, name: str) -> str:
    """One phrasing of a question for a named value."""
    forms = ("What is the {}?", "What is the {} on this page?", "Read the {}.", "Give the {}.")
    return pick(rng, forms).format(name)


# ----------------------------------------------------------------------------------------- layouts


def draw_text(
    canvas: Canvas, rng: Generator, passages: Sequence[str], random_text: float = 0.0
) -> Facts:
    """Fill the page with wrapped passages, the first from one of its sentences on."""
    lines: list[str] = []
    width, tries = canvas.right - canvas.left, 2 * canvas.rows + 1
    while len(lines) < canvas.rows and (tries := tries - 1) > 0:
        text = pick(rng, passages)
        if not lines:
            starts = [0, *(m.end() for m in re.finditer(r"[.!?] (?=[A-Z])", text))]
            text = text[pick(rng, starts) :]
        text = canvas.clean(scramble(rng, text, random_text))
        lines += canvas.wrap(text, width, split=False, limit=canvas.rows - len(lines))
    if not lines:
        return []
    # shift the block a little: readers must not rely on fixed positions
    slack = int(min(width - max(map(canvas.measure, lines)), 2 * canvas.px))
    x = canvas.left + int(rng.integers(slack + 1))
    y = canvas.top + int(rng.integers(canvas.slack(len(lines)) + 1))
    for line in lines:
        canvas.put(x, y, line)
        canvas.next_line()
        y += canvas.pitch
    words = " ".join(lines).split()
    facts = [
        (pick(rng, ("What does the page say?", "Read the page.")), " ".join(words)),
        ("What is the first word?", words[0]),
        ("What is the last word?", words[-1]),
        ("What is the first line?", lines[0]),
    ]
    counts = Counter(words)
    for index in rng.permutation(len(words) - 1)[:2]:
        if counts[words[index]] == 1:
            facts.append((f"Which word comes after {words[index]!r}?", words[index + 1]))
    return facts


def draw_form(canvas: Canvas, rng: Generator, random_text: float = 0.0) -> Facts:
    """Lines of ``label: value``, one fact each, perhaps under a title."""
    columns, bold = rng.random() < 0.4, rng.random() < 0.3
    colon = ":" if not columns or rng.random() < 0.5 else ""
    middle = canvas.left + int((canvas.right - canvas.left) * 0.45)
    title = pick(rng, TITLES) if canvas.rows >= 4 and rng.random() < 0.5 else ""
    free = canvas.rows - bool(title)
    rows: list[tuple[str, str, str, int]] = []
    for name in map(str, rng.permutation(list(FIELDS))):
        if len(rows) >= free:
            break
        labels, make = FIELDS[name]
        label = pick(rng, labels) + colon
        value = canvas.clean(scramble(rng, make(rng), random_text))
        after = canvas.left + canvas.measure(label, bold) + canvas.space
        x = max(after, middle) if columns else after
        if value and x + canvas.measure(value) <= canvas.right:
            rows.append((name, label, value, x))
    rows = rows[: int(rng.integers((free + 1) // 2, free + 1))] if free else []
    if not rows:
        return []
    spare = canvas.slack(len(rows) + bool(title))
    step = canvas.pitch + min(int(rng.random() * spare / len(rows)), canvas.pitch)
    y, facts = canvas.top, Facts()
    if title and canvas.measure(title, True) <= canvas.right - canvas.left:
        x = pick(rng, (canvas.left, canvas.center(title, bold=True)))
        canvas.put(x, y, title, bold=True)
        canvas.next_line()
        y += canvas.pitch
        if rng.random() < 0.4:
            canvas.rule(y - 2)
    for name, label, value, x in rows:
        canvas.put(canvas.left, y, label, bold=bold)
        canvas.put(x, y, value)
        canvas.next_line()
        y += step
        facts.append((ask(rng, name), value))
    return facts


def draw_receipt(canvas: Canvas, rng: Generator, random_text: float = 0.0) -> Facts:
    """Shop, date, items with prices at the right edge, and their true total."""
    width = canvas.right - canvas.left
    sign = canvas.clean(pick(rng, ("", "", "$", "\u20ac", "\u00a3")))
    shop = canvas.clean(scramble(rng, f"{pick(rng, LAST_NAMES)} {pick(rng, SHOPS)}", random_text))
    head = [("Which shop is the receipt from?", shop)]
    if canvas.rows >= 5:
        head.append((ask(rng, "date"), date(rng)))
    if canvas.rows >= 9:
        head.append((ask(rng, "address"), _address(rng)))
        head.append((ask(rng, "phone number"), digits(rng, "+## ### ####")))
    room = [max(canvas.measure(a), canvas.measure(a, True)) <= width for _, a in head]
    head = [pair for pair, fits in zip(head, room, strict=True) if fits and pair[1]]
    free = canvas.rows - len(head) - 1
    items: list[tuple[str, int]] = []
    wanted = int(rng.integers(min(free, max(1, free // 2)), min(free, 16) + 1)) if free > 0 else 0
    for index in rng.permutation(len(GOODS)):
        name = canvas.clean(scramble(rng, GOODS[int(index)], random_text))
        cents = round(100 * 10 ** rng.uniform(-0.3, 2.2))
        fits = canvas.measure(f"{name}  {sign}{cents / 100:,.2f}") <= width
        if len(items) < wanted and name not in dict(items) and fits:
            items.append((name, cents))
    y, facts = canvas.top, Facts()
    for number, (question, text) in enumerate(head[: canvas.rows]):
        canvas.put(canvas.center(text, bold=number == 0), y, text, bold=number == 0)
        canvas.next_line()
        y += canvas.pitch
        facts.append((question, text))
    for name, cents in items:
        price = f"{sign}{cents / 100:,.2f}"
        canvas.put(canvas.left, y, name)
        canvas.put(canvas.right - canvas.measure(price), y, price)
        canvas.next_line()
        y += canvas.pitch
        facts.append((f"What is the price of {name}?", price))
    total = f"{sign}{sum(cents for _, cents in items) / 100:,.2f}"
    label, bold = pick(rng, ("TOTAL", "Total", "Total:", "Amount due")), bool(rng.random() < 0.5)
    if items and canvas.measure(f"{label}  {total}", bold) <= width:
        canvas.rule(y - 1)
        canvas.put(canvas.left, y, label, bold=bold)
        canvas.put(canvas.right - canvas.measure(total, bold), y, total, bold=bold)
        canvas.next_line()
        facts.append((ask(rng, "total"), total))
    return facts


def draw_table(canvas: Canvas, rng: Generator, table: Table, random_text: float = 0.0) -> Facts:
    """A slice of a table: the columns and rows that fit, cells cut where they are too long."""
    width, pad = canvas.right - canvas.left, max(3, canvas.px // 4)
    titled = bool(table.title) and canvas.rows >= 5 and rng.random() < 0.4
    titled = titled and canvas.measure(table.title, True) <= width
    count = min(canvas.rows - 1 - titled, len(table.rows))
    if count < 1:
        return []
    start = int(rng.integers(len(table.rows) - count + 1))
    rows: list[list[str]] = [list(map(canvas.clean, table.header))]
    for row in table.rows[start : start + count]:
        rows.append([canvas.clean(scramble(rng, cell, random_text)) for cell in row])
    cap, used, chosen, widths = width // 2 - 2 * pad, 0, [], []
    for column in [0, *(1 + rng.permutation(len(rows[0]) - 1))]:
        if not any(row[column] for row in rows[1:]):
            continue
        needed = max(canvas.measure(row[column], n == 0) for n, row in enumerate(rows))
        needed = min(needed, cap)
        if used + needed + 2 * pad > width:
            continue
        used += needed + 2 * pad
        chosen.append(int(column))
        widths.append(needed)
    order = sorted(range(len(chosen)), key=chosen.__getitem__)
    widths = [widths[i] for i in order]
    cut = [
        ["".join(canvas.wrap(row[chosen[i]], cap, bold=n == 0, limit=1)) for i in order]
        for n, row in enumerate(rows)
    ]
    y = canvas.top
    if titled:
        canvas.put(canvas.left, y, table.title, bold=True)
        canvas.next_line()
        y += canvas.pitch
    ruled = pick(rng, ("none", "header", "rows", "grid", "grid"))
    lines = [[[cell] if cell else [] for cell in row] for row in cut]
    draw_grid(canvas, y, lines, widths, pad=pad, ruled=ruled, right=bool(rng.random() < 0.3))
    return table_facts(cut)


def draw_grid(
    canvas: Canvas,
    y: int,
    rows: Sequence[Sequence[Sequence[str]]],
    widths: Sequence[int],
    *,
    pad: int,
    ruled: str,
    right: bool = False,
) -> None:
    """Draw cells of text lines from ``y`` down; the first row is the header, in bold.

    Args:
        widths: inner width in px of each column; ``pad`` px stand left and right of it.
        ruled: ``"none"``, ``"header"``, ``"rows"`` or ``"grid"``.
        right: set cells that are numbers to the right.
    """
    edges = [canvas.left]
    for width in widths:
        edges.append(edges[-1] + width + 2 * pad)
    top = y
    for number, row in enumerate(rows):
        if ruled in ("grid", "rows") or (ruled == "header" and number == 1):
            canvas.rule(y, edges[0], edges[-1])
        height = max((len(cell) for cell in row), default=1) or 1
        for line in range(height):
            for column, cell in enumerate(row):
                if line < len(cell):
                    x = edges[column] + pad
                    if right and re.fullmatch(r"[-+$%.,\d]+", cell[line]):
                        x += widths[column] - canvas.measure(cell[line], number == 0)
                    canvas.put(x, y, cell[line], bold=number == 0)
            canvas.next_line()
            y += canvas.pitch
    if ruled in ("grid", "rows"):
        canvas.rule(y, edges[0], edges[-1])
    if ruled == "grid":
        for edge in edges:
            canvas.vertical(edge, top, y)


def table_facts(rows: Sequence[Sequence[str]]) -> Facts:
    """Questions by row key and column name; ``rows[0]`` is the header, all as drawn."""
    header, body = rows[0], rows[1:]
    unique = (
        c
        for c in range(len(header))
        if all(row[c] for row in body) and len({row[c] for row in body}) == len(body)
    )
    key = next(unique, None)
    names = Counter(header)
    if key is None:
        return []
    return [
        (f"What is the {name} of {row[key]}?", row[column])
        for row in body
        for column, name in enumerate(header)
        if column != key and name and names[name] == 1 and row[column]
    ]
