"""Recipes: YAML files that say what is trained, on what, at which rate.

Every key is checked; an unknown one is an error that names the nearest right one. A recipe is
self-contained: the three stages of the paper are three entries of ``stages``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ..connectors.configs import CONNECTOR_TYPES, ConnectorConfig, ConnectorConfigBase
from ..data.sources.specs import SourceBase, SourceSpec
from ..data.synthetic.render import RenderSpec
from ..errors import ConfigError, describe_validation_error, nearest


class Strict(BaseModel):
    """Frozen, and no key that is not declared."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class LossSpec(Strict):
    """Weights of the losses; a stage with ``lm: 0`` runs no language model."""

    lm: float = Field(1.0, ge=0)
    vocab: float = Field(0.0, ge=0, description="cross-entropy on P_vocab against grounded cells")
    blank: float = Field(0.25, ge=0, description="weight of blank cells within the vocab loss")
    blank_cells: int | None = Field(
        None, ge=0, description="score at most this many blank cells a page; default: all"
    )

    @model_validator(mode="after")
    def _something(self) -> LossSpec:
        if self.lm == 0 and self.vocab == 0:
            raise ValueError("a stage needs lm or vocab above 0")
        return self


class StageSpec(Strict):
    """One stage: what trains, at which rate, on which weighted sources.

    ``train`` maps parts to learning rates: ``vision``, ``connector``, ``text`` or a dotted
    parameter path below them (``connector.w2``); the longest match wins. What is absent or 0 is
    frozen.
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    train: dict[str, float]
    sources: list[SourceSpec] = Field(min_length=1)
    steps: int | None = Field(None, ge=1)
    epochs: float | None = Field(None, gt=0)
    loss: LossSpec = LossSpec()
    batch_size: int = Field(1, ge=1)
    gradient_accumulation: int = Field(1, ge=1)
    gradient_checkpointing: bool = False
    packing: bool = Field(
        False, description="short samples of a micro-batch share a row instead of being padded"
    )
    max_length: int = Field(8192, ge=16, description="longer samples are dropped, never cut")
    scheduler: Literal["cosine", "linear", "constant", "constant_with_warmup"] = "cosine"
    warmup_ratio: float = Field(0.03, ge=0, le=1)
    weight_decay: float = Field(0.0, ge=0)
    max_grad_norm: float = Field(1.0, gt=0)
    adam_beta2: float = Field(0.999, gt=0, lt=1)
    optimizer: Literal["adamw_torch", "adamw_torch_fused", "adamw_bnb_8bit", "adamw_torch_8bit"] = (
        "adamw_torch"
    )
    log_steps: int = Field(10, ge=1)
    save_steps: int = Field(500, ge=1)
    workers: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _checks(self) -> StageSpec:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give exactly one of steps and epochs")
        for part, rate in self.train.items():
            if part.split(".")[0] not in ("vision", "connector", "text"):
                raise ValueError(
                    f"train: unknown part {part!r}{nearest(part, ('vision', 'connector', 'text'))}"
                )
            if rate < 0:
                raise ValueError(f"train.{part}: a learning rate cannot be negative")
        if not any(self.train.values()):
            raise ValueError("train: nothing trains")
        if self.loss.lm == 0 and any(
            rate and part.startswith("text") for part, rate in self.train.items()
        ):
            raise ValueError("train.text needs loss.lm above 0")
        if self.packing and not self.loss.lm:
            raise ValueError(
                "packing needs loss.lm above 0: only the language model's rows are packed"
            )
        if self.packing and self.batch_size == 1:
            raise ValueError(
                "packing needs a batch_size above 1: it packs the samples of a micro-batch; "
                "raise batch_size and lower gradient_accumulation"
            )
        return self

    @property
    def batch(self) -> int:
        """Samples in one optimiser step on one process."""
        return self.batch_size * self.gradient_accumulation


class TilingSpec(Strict):
    """How pages are cut, see :mod:`alignvlm.tiling`."""

    tile_height: int | None = Field(None, ge=1)
    tile_width: int | None = Field(None, ge=1)
    max_tiles: int = Field(9, ge=1)
    min_tiles: int = Field(1, ge=1)
    thumbnail: bool = False


class ModelSpec(Strict):
    """The parts a model is put together from.

    ``vision`` is pretrained weights (hub id or folder) or a config to start from scratch.
    ``text_config`` and ``vision_config`` let ``--dry-run`` work without the weights.
    """

    text: str
    vision: str | dict[str, Any]
    connector: ConnectorConfig
    tiling: TilingSpec = TilingSpec()
    token_order: Literal["page", "tile"] = "page"
    row_end: bool = True
    vision_feature_layer: int = -1
    blank_threshold: float | None = Field(None, gt=0, lt=1, description="drop blank visual tokens")
    chat_template: str | None = None
    image_token: str | None = None
    text_config: dict[str, Any] | None = None
    vision_config: dict[str, Any] | None = None

    def config_options(self) -> dict[str, Any]:
        """The keys of :class:`alignvlm.AlignVLMConfig` that a recipe sets."""
        return {
            "tile_height": self.tiling.tile_height,
            "tile_width": self.tiling.tile_width,
            "token_order": self.token_order,
            "row_end": self.row_end,
            "vision_feature_layer": self.vision_feature_layer,
            "blank_threshold": self.blank_threshold,
        }


class Recipe(Strict):
    """A whole training run."""

    name: str
    description: str = ""
    model: ModelSpec
    stages: list[StageSpec] = Field(min_length=1)
    seed: int = 0

    @model_validator(mode="after")
    def _stage_names(self) -> Recipe:
        names = [stage.name for stage in self.stages]
        if len(set(names)) != len(names):
            raise ValueError("two stages have the same name")
        if any(s.loss.vocab for s in self.stages) and self.model.connector.type != "align":
            raise ValueError("loss.vocab needs the 'align' connector")
        return self

    def to_yaml(self) -> str:
        """The resolved recipe, as saved with the weights."""
        data = self.model_dump(mode="json", exclude_defaults=True)
        # the key that chooses a connector is its own default, so it would be left out
        connector = data["model"]["connector"]
        data["model"]["connector"] = {"type": self.model.connector.type, **connector}
        return yaml.safe_dump(data, sort_keys=False, width=100)


def recipe_folders() -> list[Path]:
    """Where named recipes live: inside the installed package, or in the repository."""
    here = Path(__file__).resolve()
    return [here.parents[1] / "recipes", here.parents[3] / "recipes"]


def find_recipe(name: str) -> Path:
    """File of a recipe: a path, or the name of a shipped one (``tiny``, ``paper/llama-3.2-1b``).

    Raises:
        ConfigError: there is none; the nearest name is suggested.
    """
    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        if path.is_file():
            return path
        raise ConfigError(f"no recipe file {name}")
    known = {
        str(file.relative_to(folder).with_suffix("")): file
        for folder in recipe_folders()
        for file in sorted(folder.rglob("*.yaml"))
    }
    if name in known:
        return known[name]
    if name == "smol":
        raise ConfigError(
            "smol is a model and not a recipe: the recipe of that name is now 'smollm2-grounded'; "
            "training/smol makes the model"
        )
    raise ConfigError(
        f"no recipe {name!r}{nearest(name, known)}; shipped: {', '.join(sorted(known))}"
    )


def load_recipe(name: str, overrides: list[str] | None = None) -> Recipe:
    """Read, override and check a recipe.

    Args:
        name: a path or a shipped recipe's name.
        overrides: ``a.b=value`` with a YAML value; list entries by number (``stages.0.steps=5``).

    Raises:
        ConfigError: no such recipe, bad YAML, an unknown key or a wrong value; one line.
    """
    path = find_recipe(name)
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise ConfigError(
            f"{path}: not a readable recipe: {' '.join(str(error).split())}"
        ) from None
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: a recipe is a mapping of keys, found {type(data).__name__}")
    for override in overrides or []:
        _override(data, override)
    return parse_recipe(data, where=str(path))


def parse_recipe(data: dict[str, Any], where: str = "recipe") -> Recipe:
    """Check a recipe given as a dict. Raises :class:`ConfigError` with the first problem."""
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        raise ConfigError(f"{where}: {_describe(error)}") from None


def _describe(error: ValidationError) -> str:
    first = error.errors()[0]
    if first["type"] == "union_tag_invalid" and first["loc"][-1] == "connector":
        tag = str(first.get("ctx", {}).get("tag"))
        return f"model.connector: unknown connector {tag!r}{nearest(tag, CONNECTOR_TYPES)}"
    return describe_validation_error(error, _all_keys())


def _all_keys() -> set[str]:
    models: list[type[BaseModel]] = [Recipe, ModelSpec, TilingSpec, StageSpec, LossSpec, RenderSpec]
    models += SourceBase.__subclasses__()
    models += ConnectorConfigBase.__subclasses__()
    return {key for model in models for key in model.model_fields}


def _override(data: dict[str, Any], override: str) -> None:
    key, sign, text = override.partition("=")
    if not sign:
        raise ConfigError(f"--set {override}: write it as key=value")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError(f"--set {override}: {text!r} is not a YAML value") from None
    node: Any = data
    *parents, last = key.split(".")
    for part in parents:
        node = _step(node, part, override)
    if isinstance(node, list):
        node[_index(node, last, override)] = value
    elif isinstance(node, dict):
        node[last] = value
    else:
        raise ConfigError(f"--set {override}: {key} does not lead to a key")


def _step(node: Any, part: str, override: str) -> Any:
    if isinstance(node, list):
        return node[_index(node, part, override)]
    if isinstance(node, dict):
        return node.setdefault(part, {})
    raise ConfigError(f"--set {override}: nothing lies below {part!r}")


def _index(node: list, part: str, override: str) -> int:
    names = [str(entry.get("name")) for entry in node if isinstance(entry, dict)]
    if part in names:
        return names.index(part)
    if part.isdigit() and int(part) < len(node):
        return int(part)
    hint = nearest(part, names)
    raise ConfigError(f"--set {override}: no entry {part!r}{hint}; there are {len(node)}")
