"""How a claim is judged. Verdicts are computed from stored cells, never written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .scores import ratios
from .settings import SIZES
from .stored import LARGE, Estimate, Study

YES, NO, UNTESTABLE = "reproduced", "not reproduced", "not testable"
PENDING = "not run yet"
MIN_SEEDS = 3
READS = 0.05
"""A model reads if its ANLS is so far above that of the same model before a white page."""
SMALL = min(SIZES)
SETTINGS = {"adapted": "-low-rank", "frozen": ""}
"""The language model's: what is behind the names of variants."""


@dataclass(frozen=True)
class Verdict:
    """Outcome, and the numbers it came from."""

    outcome: str
    evidence: str


Judge = Callable[[Study, str], Verdict]
"""Takes what is behind the names of variants in a setting."""


@dataclass(frozen=True)
class Claim:
    """What is claimed, the rule, and the rule as code."""

    title: str
    says: str
    rule: str
    judge: Judge


def lacking(study: Study, *variants: str, size: int = LARGE) -> Verdict | None:
    """Too few seeds to judge by."""
    for variant in variants:
        have = study.seeds(variant, size)
        if have < MIN_SEEDS:
            return Verdict(PENDING, f"{variant} at {size:,} pages: {have} of {MIN_SEEDS} seeds.")
    return None


def above_floor(study: Study, variant: str, size: int = LARGE) -> Estimate | None:
    """What reading the page adds to ANLS, over the same model before a white page; where that was
    not measured, over the one that was trained with all pages."""
    floor = study.values(variant, "white", size) or study.values(variant, "white")
    own = study.values(variant, "test", size)
    return Estimate.of([own[seed] - floor[seed] for seed in own if seed in floor])


def illiterate(study: Study, *variants: str, all_of: bool, size: int = LARGE) -> Verdict | None:
    """No (or not every) variant reads, so that a difference says nothing."""
    found = {variant: above_floor(study, variant, size) for variant in variants}
    able = [v for v, e in found.items() if e is not None and e.mean > READS]
    if able and (not all_of or len(able) == len(variants)):
        return None
    parts = [f"{v} {'–' if e is None else e.text()}" for v, e in found.items()]
    return Verdict(UNTESTABLE, f"ANLS above the white page's: {', '.join(parts)}.")


def above_zero(difference: Estimate | None, what: str) -> Verdict:
    """Reproduced if the whole interval lies above 0."""
    if difference is None:
        return Verdict(UNTESTABLE, f"{what}: no seed in common.")
    numbers = f"{what}: {difference.text()} over {difference.n} seeds"
    if difference.low > 0:
        return Verdict(YES, f"{numbers}; the interval lies above 0.")
    if difference.high < 0:
        return Verdict(NO, f"{numbers}; the interval lies below 0: the opposite.")
    return Verdict(NO, f"{numbers}; the interval contains 0: these seeds show no difference.")


def better(first: str, second: str, name: str = "test", size: int = LARGE) -> Judge:
    """First scores higher than second."""

    def judge(study: Study, behind: str) -> Verdict:
        one, two = first + behind, second + behind
        stop = lacking(study, one, two, size=size)
        stop = stop or illiterate(study, one, two, all_of=False, size=size)
        what = f"ANLS at {size:,} pages, {one} minus {two}"
        devices = [study.devices(variant, size) for variant in (one, two)]
        if devices[0] != devices[1]:
            what += f" (on {devices[0]} and on {devices[1]})"
        return stop or above_zero(study.difference(one, two, name, size), what)

    return judge


def in_settings(adapted: Judge, frozen: Judge | None = None) -> Judge:
    """Another judge for each setting; a claim may be measured for the adapted model only."""

    def judge(study: Study, behind: str) -> Verdict:
        if behind:
            return adapted(study, behind)
        if frozen is not None:
            return frozen(study, behind)
        return Verdict(UNTESTABLE, "measured for the adapted model only.")

    return judge


def low_resource(study: Study, behind: str) -> Verdict:
    """The gap is there with few pages, and larger than with all."""
    align, mlp = "align" + behind, "mlp" + behind
    stop = (
        lacking(study, align, mlp)
        or lacking(study, align, mlp, size=SMALL)
        or illiterate(study, align, mlp, all_of=False)
    )
    if stop:
        return stop
    gaps = {size: study.difference(align, mlp, "test", size) for size in sorted(SIZES)}
    few, all_ = (
        {s: study.values(align, "test", size)[s] - study.values(mlp, "test", size)[s]
         for s in study.values(align, "test", size)}
        for size in (SMALL, LARGE)
    )  # fmt: skip
    more = Estimate.of([few[seed] - all_[seed] for seed in few if seed in all_])
    shown = ", ".join(f"{gap.text()} at {size:,}" for size, gap in gaps.items() if gap)
    early = gaps[SMALL]
    assert early is not None and more is not None
    evidence = (
        f"ANLS, {align} minus {mlp}: {shown} pages; at {SMALL:,} {more.text()} more than at "
        f"{LARGE:,}."
    )
    return Verdict(YES if early.low > 0 and more.low > 0 else NO, evidence)


def both_read(name: str, what: str, first: str = "align", second: str = "mlp") -> Judge:
    """A number of the first is higher; both have to read."""

    def compare(study: Study, one: str, two: str) -> Verdict:
        stop = lacking(study, one, two) or illiterate(study, one, two, all_of=True)
        return stop or above_zero(study.difference(one, two, name), f"{what}, {one} minus {two}")

    def judge(study: Study, behind: str) -> Verdict:
        own = compare(study, first + behind, second + behind)
        pair = ("align-grounded" if v == "align" else v for v in (first, second))
        return _or_grounded(own, compare(study, *(v + behind for v in pair)))

    return judge


def _or_grounded(own: Verdict, grounded: Verdict) -> Verdict:
    """Where ALIGN does not read, also what grounded ALIGN would be judged."""
    if own.outcome != UNTESTABLE or grounded.outcome in (PENDING, UNTESTABLE):
        return own
    more = f"With grounding it would be {grounded.outcome}: {grounded.evidence}"
    return Verdict(own.outcome, f"{own.evidence} {more}")


def of_align(judge: Judge) -> Judge:
    """Judge ALIGN; where it does not read, say also what grounded ALIGN would be judged."""

    def judged(study: Study, behind: str) -> Verdict:
        own = _reading(judge, study, "align" + behind)
        return _or_grounded(own, _reading(judge, study, "align-grounded" + behind))

    return judged


def _reading(judge: Judge, study: Study, variant: str) -> Verdict:
    return (
        lacking(study, variant) or illiterate(study, variant, all_of=True) or judge(study, variant)
    )


def dense(study: Study, variant: str) -> Verdict:
    """No token dominates the averaged distribution."""
    largest = study.estimate(variant, "largest")
    assert largest is not None
    return Verdict(YES if largest.high <= 0.05 else NO, f"largest probability {largest.text(4)}.")


def white_space(study: Study, variant: str) -> Verdict:
    """White space has a large part of the probability."""
    found = study.estimate(variant, "whitespace")
    assert found is not None
    return Verdict(YES if found.low > 0.05 else NO, f"probability on white space {found.text()}.")


def few_tokens(study: Study, variant: str) -> Verdict:
    """Most of the vocabulary is negligible."""
    found, size = study.estimate(variant, "above"), study.estimate(variant, "vocabulary")
    assert found is not None and size is not None
    share = Estimate(found.mean / size.mean, found.half / size.mean, found.n)
    evidence = f"share of ids with non-negligible probability {share.text()}."
    return Verdict(YES if share.high <= 0.1 else NO, evidence)


def pruning(study: Study, variant: str) -> Verdict:
    """Keeping the ids with 99 % of the mass changes nothing."""
    change, kept = study.estimate(variant, "pruned"), study.estimate(variant, "for_99")
    if change is None or kept is None:
        return Verdict(UNTESTABLE, "nothing to prune by.")
    evidence = f"ANLS changes by {change.text()} with {kept.text(0)} ids kept."
    small = abs(change.mean) <= 0.01 and change.low > -0.02 and change.high < 0.02
    return Verdict(YES if small else NO, evidence)


def spans(study: Study, variant: str) -> Verdict:
    """The used embeddings are as wide as all along the first ten components."""
    narrowest, kept = study.estimate(variant, "narrowest"), study.estimate(variant, "for_99")
    size = study.estimate(variant, "vocabulary")
    assert narrowest is not None and kept is not None and size is not None
    evidence = (
        f"narrowest of ten axes {narrowest.text()} of the width of all; {kept.text(0)} of "
        f"{size.mean:,.0f} ids are used."
    )
    if kept.mean > 0.5 * size.mean:
        return Verdict(UNTESTABLE, evidence + " Most ids are used, so they span by themselves.")
    return Verdict(YES if narrowest.low >= 0.8 else NO, evidence)


def look_alikes(study: Study, behind: str) -> Verdict:
    """ALIGN reads rare words as known ones more often than the MLP does."""
    align, mlp = "align" + behind, "mlp" + behind
    if stop := lacking(study, align, mlp):
        return stop
    right = {v: study.estimate(v, "common words") for v in (align, mlp)}
    if any(e is None or e.mean < 0.2 for e in right.values()):
        numbers = ", ".join(f"{v} {e.text() if e else '–'}" for v, e in right.items())
        return Verdict(UNTESTABLE, f"known words are hardly read: {numbers}.")
    what = f"rare words read as the known one, {align} minus {mlp}"
    return above_zero(study.difference(align, mlp, "rare as common"), what)


MOST_COST = 1.25


def cost(study: Study, behind: str) -> Verdict:
    """A training step's time against the MLP's."""
    if not study.cost:
        return Verdict(PENDING, "no steps have been timed.")
    found = ratios(study.cost)["align"]
    memory = study.cost["memory_gib"]
    evidence = (
        f"a step of {study.cost['batch']} pages on one {study.cost['device']}, align over mlp in "
        f"{len(found)} rounds: {min(found):.2f} to {max(found):.2f}; "
        f"{memory['align']:.2f} and {memory['mlp']:.2f} GiB."
    )
    return Verdict(YES if max(found) <= MOST_COST else NO, evidence)
