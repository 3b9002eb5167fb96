"""The paper's claims, each with the rule that judges it. Verdicts are computed, never written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from . import stored as s
from .stored import Estimate, Study, Value

YES, NO, UNTESTABLE = "reproduced", "not reproduced", "not testable at this scale"
PENDING = "not run yet"
MIN_SEEDS = 3
READS = 0.05
"""A model reads if its ANLS is so far above that of the same model before a white page."""
REAL_VOCABULARY = 32_000
"""With fewer rows P_vocab costs nothing, so its cost cannot be judged."""


@dataclass(frozen=True)
class Verdict:
    """Outcome, and the numbers it came from."""

    outcome: str
    evidence: str


@dataclass(frozen=True)
class Claim:
    """What is claimed, the rule, and the rule as code."""

    title: str
    says: str
    rule: str
    judge: Callable[[Study], Verdict]


def judged(study: Study, claim: Claim) -> Verdict:
    """The claim's verdict."""
    return claim.judge(study)


def reads(study: Study, variant: str) -> bool:
    """Whether a variant's mean ANLS is above its own blind score by more than ``READS``."""
    found = study.estimate(variant, s.above_blind)
    return found is not None and found.mean > READS


def lacking(study: Study, *variants: str) -> Verdict | None:
    """Too few seeds to judge by."""
    for variant in variants:
        have = len(study.cells.get(variant, {}))
        if have < MIN_SEEDS:
            return Verdict(PENDING, f"{variant} has {have} of {MIN_SEEDS} seeds.")
    return None


def illiterate(study: Study, *variants: str, all_of: bool) -> Verdict | None:
    """No (or not every) variant reads, so that a difference says nothing."""
    able = [variant for variant in variants if reads(study, variant)]
    if able and (not all_of or len(able) == len(variants)):
        return None
    parts = []
    for variant in variants:
        found = study.estimate(variant, s.above_blind)
        parts.append(f"{variant} {'–' if found is None else found.text()}")
    return Verdict(UNTESTABLE, f"ANLS above the blind score: {', '.join(parts)}.")


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


def better(first: str, second: str, value: Value = s.anls, name: str = "ANLS"):
    """First scores higher than second."""

    def judge(study: Study) -> Verdict:
        stop = lacking(study, first, second) or illiterate(study, first, second, all_of=False)
        what = f"{name}, {first} minus {second}"
        return stop or above_zero(study.difference(first, second, value), what)

    return judge


def low_resource(study: Study) -> Verdict:
    """The gap is there with a quarter of the samples, and larger than at the end."""
    stop = lacking(study, "align", "mlp") or illiterate(study, "align", "mlp", all_of=False)
    if stop:
        return stop
    early = study.difference("align", "mlp", s.at_fraction(0.25))

    def shrinks(cell: s.Cell) -> float | None:
        first, last = s.at_fraction(0.25)(cell), s.at_fraction(1.0)(cell)
        return None if first is None or last is None else first - last

    change = study.difference("align", "mlp", shrinks)
    if early is None or change is None:
        return Verdict(UNTESTABLE, "no learning curve in common.")
    evidence = (
        f"ALIGN minus MLP, ANLS: {early.text()} with a quarter of the samples; that is "
        f"{change.text()} more than at the end."
    )
    return Verdict(YES if early.low > 0 and change.low > 0 else NO, evidence)


def noise(place: str):
    """ALIGN keeps more of its score."""

    def judge(study: Study) -> Verdict:
        stop = lacking(study, "align", "mlp") or illiterate(study, "align", "mlp", all_of=True)
        what = f"share of ANLS kept under noise on {place}, align minus mlp"
        return stop or above_zero(study.difference("align", "mlp", s.retained(place)), what)

    return judge


def cosine(study: Study) -> Verdict:
    """ALIGN's output moves less at σ = 3."""
    stop = lacking(study, "align", "mlp") or illiterate(study, "align", "mlp", all_of=True)
    distance = s.noise_at("features", 3.0, "cosine_distance")
    return stop or above_zero(
        study.difference("mlp", "align", distance), "cosine distance, mlp minus align"
    )


def _reads(study: Study, variant: str) -> Verdict | None:
    return lacking(study, variant) or illiterate(study, variant, all_of=True)


def of_align(judge: Callable[[Study, str], Verdict]) -> Callable[[Study], Verdict]:
    """Judge ALIGN; where it does not read, say also what grounded ALIGN would be judged."""

    def judged(study: Study) -> Verdict:
        own = judge(study, "align")
        if own.outcome != UNTESTABLE:
            return own
        other = judge(study, "align-grounded")
        if other.outcome in (PENDING, UNTESTABLE):
            return own
        grounded = f"With grounding it would be {other.outcome}: {other.evidence}"
        return Verdict(own.outcome, f"{own.evidence} {grounded}")

    return judged


def dense(study: Study, variant: str) -> Verdict:
    """No token dominates the averaged distribution."""
    if stop := _reads(study, variant):
        return stop
    largest = study.estimate(variant, s.of_vocabulary("largest"))
    assert largest is not None
    return Verdict(YES if largest.high <= 0.05 else NO, f"largest probability {largest.text(4)}.")


def whitespace(study: Study, variant: str) -> Verdict:
    """White space is above its share of the vocabulary by far."""
    if stop := _reads(study, variant):
        return stop
    found = study.estimate(variant, s.of_vocabulary("whitespace"))
    assert found is not None
    return Verdict(YES if found.low > 0.05 else NO, f"probability on white space {found.text()}.")


def few_tokens(study: Study, variant: str) -> Verdict:
    """Most of the vocabulary is negligible."""
    if stop := _reads(study, variant):
        return stop

    def share(cell: s.Cell) -> float:
        return cell["vocabulary_use"]["above"] / cell["vocabulary_use"]["vocabulary"]

    found = study.estimate(variant, share)
    assert found is not None
    evidence = f"share of ids with non-negligible probability {found.text()}."
    return Verdict(YES if found.high <= 0.1 else NO, evidence)


def pruning(study: Study, variant: str) -> Verdict:
    """Keeping the ids with 99 % of the mass changes nothing."""
    if stop := _reads(study, variant):
        return stop
    change = study.estimate(variant, s.pruning_change)
    kept = study.estimate(variant, s.of_vocabulary("for_99"))
    if change is None or kept is None:
        return Verdict(UNTESTABLE, "one id holds 99 % of the mass.")
    evidence = f"ANLS changes by {change.text()} with {kept.text(0)} ids kept."
    small = abs(change.mean) <= 0.01 and change.low > -0.02 and change.high < 0.02
    return Verdict(YES if small else NO, evidence)


def spans(study: Study, variant: str) -> Verdict:
    """The used embeddings are as wide as all along the first ten components."""
    if stop := _reads(study, variant):
        return stop
    narrowest = study.estimate(variant, lambda cell: min(cell["pca"]["spread"]))
    share = study.estimate(
        variant, lambda c: c["vocabulary_use"]["for_99"] / c["vocabulary_use"]["vocabulary"]
    )
    assert narrowest is not None and share is not None
    evidence = (
        f"narrowest of ten axes {narrowest.text()} of the width of all; {share.text()} of the ids "
        "are used."
    )
    if share.mean > 0.5:
        return Verdict(UNTESTABLE, evidence + " Most ids are used, so they span by themselves.")
    return Verdict(YES if narrowest.low >= 0.8 else NO, evidence)


def cost(study: Study) -> Verdict:
    """CPU time of training, where the vocabulary is a real one."""
    if stop := lacking(study, "align", "mlp"):
        return stop
    cell = study.any()
    assert cell is not None
    if cell["vocabulary"] < REAL_VOCABULARY:
        rows = f"the vocabulary has {cell['vocabulary']:,} ids."
        return Verdict(UNTESTABLE, f"{rows} docs/performance.md measures real sizes.")
    ratio = _ratio(study, "align", "mlp", lambda c: c["train_cpu_s"])
    assert ratio is not None
    return Verdict(YES if ratio.high <= 1.25 else NO, f"CPU time, align over mlp: {ratio.text(2)}.")


def _ratio(study: Study, first: str, second: str, value: Value) -> Estimate | None:
    one, two = study.values(first, value), study.values(second, value)
    return Estimate.of([one[seed] / two[seed] for seed in one if seed in two])


def covered(split: str):
    """ALIGN restores more covered words."""

    def judge(study: Study) -> Verdict:
        def jaccard(cell: s.Cell) -> float:
            return cell["covered"][split]["jaccard"]

        if stop := lacking(study, "align", "mlp"):
            return stop
        found = {v: study.estimate(v, jaccard) for v in ("align", "mlp")}
        if all(e is None or e.mean <= READS for e in found.values()):
            numbers = ", ".join(f"{v} {e.text() if e else '–'}" for v, e in found.items())
            return Verdict(UNTESTABLE, f"neither restores words: Jaccard index {numbers}.")
        what = f"Jaccard index ({split}), align minus mlp"
        return above_zero(study.difference("align", "mlp", jaccard), what)

    return judge


def look_alikes(study: Study) -> Verdict:
    """ALIGN reads rare words as common ones more often than the MLP does."""
    if stop := lacking(study, "align", "mlp"):
        return stop
    right = {v: study.estimate(v, lambda c: c["look_alikes"]["common_right"])
             for v in ("align", "mlp")}  # fmt: skip
    if any(e is None or e.mean < 0.2 for e in right.values()):
        numbers = ", ".join(f"{v} {e.text() if e else '–'}" for v, e in right.items())
        return Verdict(UNTESTABLE, f"common words are hardly read: {numbers}.")
    drift = study.difference("align", "mlp", lambda c: c["look_alikes"]["rare_as_common"])
    return above_zero(drift, "rare words read as the common one, align minus mlp")
