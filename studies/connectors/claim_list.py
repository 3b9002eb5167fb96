"""The list of claims, in the order of docs/study.md."""

from __future__ import annotations

from . import claims as c
from . import stored as s
from .claims import READS, Claim

_HIGHER = (
    "Reproduced if the 95 % t-interval of the difference, seed by seed, lies above 0. Not testable "
    f"if neither reads (ANLS more than {READS} above the same model's before a white page)."
)
_BOTH = _HIGHER.replace("if neither reads", "unless both read")
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
        "Reproduced if two 95 % intervals lie above 0: the difference in ANLS with a quarter of "
        "the samples, and how much larger it is than at the end. Testable as above.",
        c.low_resource,
    ),
    Claim(
        "Noise on features",
        "With N(0, 3) on the features ALIGN loses 1.67 points, the MLP 25.54.",
        "The measure is the share of ANLS kept, averaged over the sweep's σ, in standard "
        f"deviations of the features, because an encoder's units are its own. {_BOTH}",
        c.noise("features"),
    ),
    Claim(
        "Cosine distance under noise",
        "At σ = 3 the connector's output moves by 0.0036 (ALIGN) and 0.3938 (MLP).",
        f"The difference is MLP minus ALIGN at σ = 3 standard deviations. {_BOTH}",
        c.cosine,
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
        c.of_align(c.whitespace),
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
        "Reproduced if training takes at most 1.25 times the MLP's CPU time. Not testable with "
        f"fewer than {c.REAL_VOCABULARY:,} ids.",
        c.cost,
    ),
    *(
        Claim(
            f"Covered words, {split}",
            f"ALIGN restores {gap} points more than the MLP.",
            "Reproduced if the interval of the difference in Jaccard index lies above 0. Not "
            f"testable if neither reaches {READS}.",
            c.covered(split),
        )
        for split, gap in (("easy", "14.41"), ("hard", "10.18"))
    ),
    Claim(
        "Look-alike words",
        "Rare names drift to common look-alikes (Llanengan read as Llanongan).",
        "Reproduced if ALIGN reads rare words as the common one more often than the MLP: the "
        "interval of the difference lies above 0. Not testable if either reads fewer than 0.2 of "
        "the common words.",
        c.look_alikes,
    ),
)
"""What the paper says."""

DESIGN = (
    Claim(
        "W2 from the language-model head",
        "The paper copies the head; the other start is random.",
        _HIGHER,
        c.better("align", "align-random-init"),
    ),
    Claim(
        "LayerNorm over the vocabulary",
        "The paper has it.",
        _HIGHER,
        c.better("align", "align-no-outer-norm"),
    ),
    Claim(
        "γ starts at 1",
        "LayerNorm's own start. At 6, which the larger recipes take, P_vocab is sharp from the "
        "first step, on whatever tokens W1 happens to favour.",
        _HIGHER,
        c.better("align", "align-gamma-6"),
    ),
    Claim(
        "Grounding",
        "Ours: a loss on P_vocab where the words' places are known.",
        _HIGHER,
        c.better("align-grounded", "align"),
    ),
    Claim(
        "Grounding and the samples it takes",
        "Ours: with a quarter of the samples grounded ALIGN is ahead of ALIGN.",
        _HIGHER,
        c.better("align-grounded", "align", s.at_fraction(0.25), "ANLS at a quarter"),
    ),
    Claim(
        "Dropping blanks",
        "Ours: without its blank visual tokens grounded ALIGN reads better still.",
        _HIGHER,
        c.better("align-grounded-drop", "align-grounded"),
    ),
)
"""Parts of ALIGN, with and without; the last four are this project's own."""
