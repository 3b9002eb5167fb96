"""The list of claims, in the order of docs/study.md."""

from __future__ import annotations

from . import claims as c
from .claims import READS, Claim

_HIGHER = (
    "Reproduced if the 95 % t-interval of the difference, seed by seed, lies above 0. Not testable "
    f"if neither reads (ANLS more than {READS} above the same model's before a white page)."
)
_BOTH = _HIGHER.replace("if neither reads", "unless both read")
_GROUNDED = f"Grounded, with {c.SMALL} pages, where ALIGN reads."
_ALIGN = "Not testable if ALIGN does not read."

PAPER = (
    *(
        Claim(
            f"ALIGN against {name}",
            f"At 3B ALIGN averages 58.81 on nine benchmarks, {name} {score}.",
            _HIGHER,
            c.better("align", variant),
        )
        for variant, name, score in (
            ("mlp", "MLP", "53.06"),
            ("perceiver", "Perceiver Resampler", "50.68"),
            ("ovis", "Ovis", "54.72"),
        )
    ),
    Claim(
        "Low resource",
        "With less training data the gap to the MLP grows (DocVQA 71.43 against 42.11).",
        "Reproduced if two 95 % intervals lie above 0: the difference in ANLS with "
        f"{c.SMALL} pages, and how much larger it is than with all. Testable as above.",
        c.low_resource,
    ),
    Claim(
        "Noise on features",
        "With N(0, 3) on the features ALIGN loses 1.67 points, the MLP 25.54.",
        "The measure is the share of ANLS above the white page's that is kept, averaged over σ of "
        "0.5 to 5 standard deviations of the features, because an encoder's units are its own. "
        f"{_BOTH}",
        c.both_read("kept under noise", "share of ANLS kept under noise"),
    ),
    Claim(
        "Cosine distance under noise",
        "At σ = 3 the connector's output moves by 0.0036 (ALIGN) and 0.3938 (MLP).",
        f"The difference is MLP minus ALIGN at σ = 3 standard deviations. {_BOTH}",
        c.both_read("distance 3", "cosine distance", "mlp", "align"),
    ),
    Claim(
        "Dense distribution",
        "Averaged over 100 pages, the largest probability is 0.0118.",
        f"Reproduced if the interval of the largest probability ends below 0.05. {_ALIGN}",
        c.of_align(c.dense),
    ),
    Claim(
        "White space",
        "White-space tokens have high probability.",
        f"Reproduced if the interval of their probability starts above 0.05. {_ALIGN}",
        c.of_align(c.white_space),
    ),
    Claim(
        "Few tokens carry the mass",
        "3.4K of 128K ids (2.7 %) are above 1e-6.",
        "Reproduced if at most 10 % of the ids are, at the same fraction of the uniform "
        f"probability. {_ALIGN}",
        c.of_align(c.few_tokens),
    ),
    Claim(
        "Pruning",
        "Keeping only those changes scores negligibly.",
        "The ids with 99 % of the mass are kept. Reproduced if ANLS changes by at most 0.01 on "
        f"average and the interval stays within 0.02. {_ALIGN}",
        c.of_align(c.pruning),
    ),
    Claim(
        "The used embeddings span the space",
        "Shown by PCA.",
        "Reproduced if, along each of the first ten components, the ids with 99 % of the mass are "
        "at least 0.8 times as wide as all. Not testable if more than half of the ids are used. "
        f"{_ALIGN}",
        c.of_align(c.spans),
    ),
    Claim(
        "Cost",
        "Speed and memory are close to the other connectors'.",
        f"Reproduced if a training step takes at most {c.MOST_COST} times the MLP's in every round "
        "but the first. A step of so few pages is mostly the language model's and the starting of "
        "kernels; docs/performance.md has larger ones.",
        c.in_settings(c.cost),
    ),
    Claim(
        "Look-alike words",
        "Rare names drift to common look-alikes (Llanengan read as Llanongan).",
        "Reproduced if ALIGN reads altered names of cities as the known one more often than the "
        "MLP: the interval of the difference lies above 0. Not testable if either reads fewer "
        "than 0.2 of the known ones.",
        c.look_alikes,
    ),
)
"""What the paper says."""

BEYOND = (
    Claim(
        "The same facts in other layouts",
        "Not in the paper: an answer should not change with the layout.",
        "The measure is the share of pairs of four layouts that get the same answer. " + _BOTH,
        c.both_read("consistency", "share of layouts with the same answer"),
    ),
    Claim(
        "Bad scans",
        "Not in the paper: pages drawn, and scanned badly.",
        "The measure is ANLS on the scans. " + _BOTH,
        c.both_read("scanned pages", "ANLS on bad scans"),
    ),
    Claim(
        "Several documents in one prompt",
        "Not in the paper; trained on one page at a time, asked about one of four.",
        "The measure is ANLS. " + _BOTH,
        c.both_read("several 4", "ANLS with four pages in the prompt"),
    ),
    Claim(
        "Moved to another language model",
        "Not in the paper: the connector of an adapted language model before the untouched one. "
        "A convex combination of its embeddings should be understood there, too.",
        "The measure is the share of the answers' tokens that come first, given the right ones "
        "before: untouched, it answers in sentences. " + _BOTH,
        c.both_read("without changes", "tokens right before the untouched language model"),
    ),
)
"""What nobody measured."""

DESIGN = (
    Claim(
        "W2 from the language-model head",
        "The paper copies the head; the other start is random. " + _GROUNDED,
        _HIGHER,
        c.in_settings(c.better("align-grounded", "align-grounded-random-head", size=c.SMALL)),
    ),
    Claim(
        "LayerNorm over the vocabulary",
        "The paper has it. " + _GROUNDED,
        _HIGHER,
        c.in_settings(c.better("align-grounded", "align-grounded-no-outer-norm", size=c.SMALL)),
    ),
    Claim(
        "γ starts at 1",
        "LayerNorm's own start. At 6, which the larger recipes take, P_vocab is sharp from the "
        f"first step, on whatever tokens W1 happens to favour. {_GROUNDED}",
        _HIGHER,
        c.in_settings(c.better("align-grounded", "align-grounded-gamma-6", size=c.SMALL)),
    ),
    Claim(
        "Grounding",
        "Ours: a loss on P_vocab where the words' places are known.",
        _HIGHER,
        c.better("align-grounded", "align"),
    ),
    Claim(
        "Grounding and the pages it takes",
        f"Ours: with {c.SMALL} pages grounded ALIGN is ahead of ALIGN.",
        _HIGHER,
        c.better("align-grounded", "align", size=c.SMALL),
    ),
    Claim(
        "Grounding against the MLP",
        "Ours: grounded ALIGN is ahead of the MLP, which has no vocabulary to be grounded in.",
        _HIGHER,
        c.better("align-grounded", "mlp"),
    ),
    Claim(
        "W1 in closed form",
        "Ours: a regression from the cells to the head's rows, then training as usual. With "
        f"{c.SMALL} pages where the language model is adapted, with all where it is frozen.",
        _HIGHER,
        c.in_settings(
            c.better("align-fitted", "align", size=c.SMALL), c.better("align-fitted", "align")
        ),
    ),
)
"""Parts of ALIGN, with and without; the last four are this project's own."""
