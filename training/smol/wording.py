"""How questions are worded: as the evaluation asks them, and as people do."""

from __future__ import annotations

import random
import re

from alignvlm.data.synthetic.layouts import FIELDS
from alignvlm.eval.tasks.local_tasks import LOCAL_TASKS

ANY_FIELD = (
    "What is the {}?", "What is the {} on this page?", "Read the {}.", "Give the {}.",
    "What is the {} here?", "Find the {}.", "{}?", "{}", "Tell me the {}.", "What {} is given?",
    "Which {} does it say?", "Please give me the {}.", "Extract the {}.",
)  # fmt: skip
NAMES = {
    "company": ("company", "company name", "shop", "seller", "store", "merchant", "vendor"),
    "date": ("date", "receipt date", "date of purchase", "invoice date"),
    "address": ("address", "company's address", "shop's address", "store address"),
    "total": ("total", "total amount", "amount due", "grand total", "amount to pay"),
    "contract_num": ("contract number", "contract no.", "order number", "contract"),
    "advertiser": ("advertiser", "advertiser's name", "client"),
    "gross_amount": ("gross amount", "gross total", "total gross amount"),
    "flight_from": ("first day of the flight", "flight start date", "start date"),
    "flight_to": ("last day of the flight", "flight end date", "end date"),
}
SPECIAL = {
    "company": ("Which company issued this receipt?", "Who is the seller?", "Which shop is it?",
                "Which shop is the receipt from?"),
    "date": ("When was this bought?", "What date is on it?"),
    "address": ("Where is the shop?", "Where is the company?"),
    "total": ("How much was paid?", "How much is it in total?", "How much does it come to?"),
    "contract_num": ("Which contract is this?",),
    "advertiser": ("Who advertises?", "Who is the advertiser?"),
    "gross_amount": ("How much is it before commission?",),
    "flight_from": ("When does the flight start?",),
    "flight_to": ("When does the flight end?",),
}  # fmt: skip
_ASKED = re.compile(r"(?:What is|Read|Give) the (.+?)(?: on this page)?[?.]")


def task(name: str, question: str) -> str:
    """A benchmark's question as its task asks it."""
    return LOCAL_TASKS[name].prompt.format(question=question)


def field(name: str, rng: random.Random) -> str:
    """A field of a benchmark asked for in other words."""
    if rng.random() < 0.3:
        return rng.choice(SPECIAL[name])
    return named(rng.choice(NAMES[name]), rng)


def named(name: str, rng: random.Random) -> str:
    """Any named value asked for."""
    text = rng.choice(ANY_FIELD[:4] if rng.random() < 0.6 else ANY_FIELD).format(name)
    return text[0].upper() + text[1:]


def reworded(question: str, rows: list[str], rng: random.Random) -> str:
    """A rendered page's question in other words, by the printed label where there is one."""
    match = _ASKED.fullmatch(question)
    if match is None or rng.random() < 0.4:
        return question
    name = match[1]
    printed = [
        label
        for label in FIELDS.get(name, ((), None))[0]
        if any(row.lower().startswith(label.lower()) for row in rows)
    ]
    if printed and rng.random() < 0.6:
        label = max(printed, key=len)
        name = label.lower() if rng.random() < 0.7 else label
        name = name.rstrip(".") if rng.random() < 0.5 else name
    return named(name, rng)
