"""How much the study does, and which models it compares."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from alignvlm.errors import ConfigError

SIGMAS = (0.0, 0.5, 1.0, 2.0, 3.0, 5.0)
"""Standard deviations of the noise sweep; the paper reports 3."""
SEEDS = (0, 1, 2)
LEAST = 0.5
"""Scale below which the shared starting points do not shrink."""
STARTING_POINT_TEST = 96
"""Held-out pages that the shared starting points are scored on."""


@dataclass(frozen=True)
class Settings:
    """What one knob, ``--scale``, sets.

    Attributes:
        samples: pages a cell trains on.
        batch: pages a step.
        points: points of the learning curve, as fractions of ``samples``.
        language_steps, vision_steps: of the two shared starting points.
        language_batch, vision_batch: pages a step of these.
        test: held-out forms for scores; ``few`` of them for curves and sweeps.
        vocabulary: pages for the vocabulary analysis.
        tokens: size of the tokenizer.
        layers, width: of the language model.
        widths, depths: of the vision encoder.
    """

    scale: float = 1.0
    smoke: bool = False
    samples: int = 8192
    batch: int = 4
    points: tuple[float, ...] = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)
    language_steps: int = 5000
    language_batch: int = 16
    vision_steps: int = 7200
    vision_batch: int = 16
    test: int = 128
    few: int = 48
    vocabulary: int = 100
    tokens: int = 256
    layers: int = 4
    width: int = 128
    widths: tuple[int, int] = (32, 96)
    depths: tuple[int, int] = (1, 3)

    @classmethod
    def at(cls, scale: float) -> Settings:
        """Settings at a scale: what is trained on grows with it, the models do not.

        The two shared starting points get at least ``LEAST`` of their steps: below that they can
        neither copy nor read, and every cell would start from nothing.
        """
        own = cls()
        more = max(LEAST, scale)
        if scale <= 0:
            raise ConfigError(f"--scale must be above 0, not {scale}")
        return replace(
            own,
            scale=scale,
            samples=max(16, round(own.samples * scale / own.batch)) * own.batch,
            language_steps=round(own.language_steps * more),
            vision_steps=round(own.vision_steps * more),
        )

    @classmethod
    def smallest(cls) -> Settings:
        """For tests: everything runs once, nothing is learnt."""
        return cls(
            scale=0.0, smoke=True, samples=16, batch=4, points=(0.5, 1.0),
            language_steps=3, language_batch=4, vision_steps=3, vision_batch=4,
            test=4, few=3, vocabulary=3, tokens=200, layers=2, width=32, widths=(8, 16),
            depths=(1, 1),
        )  # fmt: skip

    def made_with(self, part: str) -> dict[str, Any]:
        """What decides a shared starting point: ``language`` or ``vision``."""
        own = {"language": ("tokens", "layers", "width"), "vision": ("widths", "depths")}[part]
        return {k: self.to_dict()[k] for k in (*own, f"{part}_steps", f"{part}_batch")}

    def is_there(self, folder: Path, part: str) -> bool:
        """Whether a shared starting point is in ``folder``.

        Raises:
            ConfigError: one of other settings is.
        """
        if not folder.is_dir():
            return False
        stored = json.loads((folder / "study.json").read_text("utf-8"))["made_with"]
        if stored != self.made_with(part):
            raise ConfigError(f"{folder} was made at another scale; choose another --out")
        return True

    def curve_steps(self) -> dict[int, int]:
        """Step to samples seen, where the learning curve has a point."""
        steps = sorted({max(1, round(p * self.samples / self.batch)) for p in self.points})
        return {step: step * self.batch for step in steps}

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}


VARIANTS: dict[str, tuple[str, ...]] = {
    "align": (),
    "mlp": ("model.connector={type: mlp}",),
    "ovis": ("model.connector={type: ovis, visual_vocab_size: 256}",),
    "perceiver": (
        "model.connector={type: perceiver, num_latents: 32, depth: 2, num_heads: 4, head_dim: 32}",
        "model.token_order=tile",
    ),
    "h_reducer": ("model.connector={type: h_reducer}",),
    "c_abstractor": (
        "model.connector={type: c_abstractor, out_rows: 3, out_cols: 12, hidden_size: 128, "
        "depth: 1}",
    ),
    "align-grounded": ("stages.0.loss.vocab=1",),
    "align-grounded-drop": ("stages.0.loss.vocab=1", "model.blank_threshold=0.5"),
    "align-random-init": ("model.connector.init=random",),
    "align-no-outer-norm": ("model.connector.outer_norm=false",),
    "align-gamma-6": ("model.connector.gamma=6",),
}
"""Variant to what it changes in ``recipes/study.yaml``."""
CONNECTORS = ("align", "mlp", "ovis", "perceiver", "h_reducer", "c_abstractor")
ABLATIONS = tuple(name for name in VARIANTS if name.startswith("align"))


def cells(seeds: int) -> list[tuple[str, int]]:
    """All (variant, seed), seed after seed: what is there first can be compared."""
    return [(variant, seed) for seed in range(seeds) for variant in VARIANTS]
