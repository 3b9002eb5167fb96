"""What a stage is made of: which parameters train, its data, its trainer."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments

from ..connectors import AlignConnector
from ..data import encode
from ..data.records import Record, load_images
from ..data.sources import MixedSource, Source
from ..data.sources.specs import build_source
from ..errors import ConfigError, DataError
from ..inference.loading import default_device, default_dtype
from ..model.generation import AlignVLMForConditionalGeneration
from ..processing.processor import AlignVLMProcessor
from .recipe import LossSpec, StageSpec

TELEMETRY_TILES = 2
"""Tiles on which the entropy of P_vocab is measured at each log."""
PARTS_LOGGED = ("lm_loss", "vocab_text_loss", "vocab_blank_loss", "vocab_loss", "steps")
GROUNDED = ("pixel_values", "image_grids", "vocab_targets")
"""What the model takes in a stage without the language model; an encoder may read whole pages."""
PARTS = {"vision": "model.vision_model", "connector": "model.connector", "text": ""}
"""Where each part lives; ``text`` is everything else: the language model and its head."""


def part_of(parameter: str) -> str:
    """Recipe path of a parameter: ``vision.…``, ``connector.…`` or ``text.…``."""
    for part in ("vision", "connector"):
        prefix = PARTS[part] + "."
        if parameter.startswith(prefix):
            return f"{part}.{parameter[len(prefix) :]}"
    return "text." + parameter.removeprefix("model.language_model.")


def learning_rate(parameter: str, rates: dict[str, float]) -> float:
    """The rate of the longest path in ``rates`` that leads to the parameter; 0 if none does."""
    path = part_of(parameter)
    matching = [key for key in rates if path == key or path.startswith(key + ".")]
    return rates[max(matching, key=len)] if matching else 0.0


def set_trainable(model: nn.Module, rates: dict[str, float]) -> dict[str, int]:
    """Freeze what has no rate. Returns trainable parameters of each part.

    Raises:
        ConfigError: a path leads to no parameter.
    """
    counts = dict.fromkeys(PARTS, 0)
    used: set[str] = set()
    for name, parameter in model.named_parameters():
        path = part_of(name)
        used |= {key for key in rates if path == key or path.startswith(key + ".")}
        parameter.requires_grad_(learning_rate(name, rates) > 0)
        if parameter.requires_grad:
            counts[path.split(".")[0]] += parameter.numel()
    if missing := set(rates) - used:
        raise ConfigError(f"train: {sorted(missing)[0]!r} leads to no parameter of this model")
    return counts


def build_mix(stage: StageSpec, seed: int, processes: int = 1) -> Source:
    """All of a stage's sources as one, long enough for its steps (or epochs) on all processes."""
    sources = [build_source(spec, seed) for spec in stage.sources]
    weights = [spec.weight for spec in stage.sources]
    if stage.steps is not None:
        size = stage.steps * stage.batch * processes
    else:  # epochs: every sample of every source counts once an epoch
        size = math.ceil((stage.epochs or 1) * sum(len(source) for source in sources))
        weights = [len(source) * w for source, w in zip(sources, weights, strict=True)]
    return MixedSource(sources, weights, size, seed=seed)


class StageDataset(Dataset):
    """Record ``i`` encoded for the model; depends on ``i`` alone, so resuming is exact.

    A record longer than ``max_length`` is replaced by the next that fits. With blank dropping only
    what remains counts.
    """

    def __init__(
        self,
        source: Source,
        stage: StageSpec,
        processor: AlignVLMProcessor,
        model: AlignVLMForConditionalGeneration,
        seed: int,
    ) -> None:
        self.source, self.stage, self.processor, self.seed = source, stage, processor, seed
        self.config = model.config
        self.connector = model.model.connector
        self.dropped = 0

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        for offset in range(len(self.source)):
            try:
                return self._encode(self.source[(index + offset) % len(self.source)], index)
            except encode.TooLong:
                self.dropped += 1
        raise DataError(f"every sample is longer than max_length={self.stage.max_length}")

    def _encode(self, record: Record, index: int) -> dict[str, Tensor]:
        stage = self.stage
        # ids and targets both need the images, which are decoded once
        record = record.model_copy(update={"images": load_images(record)})
        if stage.loss.lm:
            sample = encode.encode_fitting(record, self.processor, self.config, stage.max_length)
        else:
            sample = encode.encode_images(record, self.processor)
        if stage.loss.vocab and "image_grids" in sample:
            assert isinstance(self.connector, AlignConnector)
            sample["vocab_targets"] = encode.vocab_targets(
                record,
                sample["image_grids"],
                self.config,
                self.processor.tokenizer,
                self.connector,
                blank_cells=stage.loss.blank_cells,
                seed=self.seed + 7 * index,
            )
        return sample


class StageTrainer(Trainer):
    """transformers' Trainer with one learning rate a part and ALIGN's losses in the log."""

    model: AlignVLMForConditionalGeneration

    def __init__(
        self,
        *args: Any,
        rates: dict[str, float],
        losses: LossSpec,
        packing: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.rates, self.packing = rates, packing
        self.lm_weight, self.vocab_weight = losses.lm, losses.vocab
        self.blank_id = self.model.config.blank_token_id
        self.step_cells = [0, 0]
        self.seen_tiles: Tensor | None = None
        self.parts: dict[str, float] = {}

    @property
    def sharded(self) -> bool:
        """Whether this process holds only its part of the weights."""
        return bool(self.is_fsdp_enabled or self.is_deepspeed_enabled)

    def whole_weights(self) -> dict[str, Tensor] | None:
        """All weights on the first process, gathered if they are sharded; else ``None``: the
        model has them. Every process must call it."""
        if not self.sharded:
            return None
        # only the first process has them
        weights: Any = self.accelerator.get_state_dict(self.model_wrapped) or {}
        for tied in self.model.all_tied_weights_keys:  # gathered twice, and no longer one tensor
            weights.pop(tied, None)
        return weights

    def rate_of(self, parameter: str) -> float:
        """The highest learning rate of a parameter, by its name."""
        return learning_rate(parameter, self.rates)

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """The stage's AdamW with a group for each learning rate; vectors do not decay.

        Raises:
            ConfigError: the library of an 8-bit one is not installed.
        """
        if self.optimizer is None:
            groups: dict[tuple[float, float], list[nn.Parameter]] = {}
            for name, parameter in self.model.named_parameters():
                if parameter.requires_grad:
                    decay = self.args.weight_decay if parameter.ndim > 1 else 0.0
                    groups.setdefault((self.rate_of(name), decay), []).append(parameter)
            try:
                kind, options = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            except (ImportError, ValueError) as error:
                raise ConfigError(f"optimizer: {' '.join(str(error).split())}") from None
            entries = [
                {"params": params, "lr": rate, "weight_decay": decay}
                for (rate, decay), params in sorted(groups.items(), key=lambda item: item[0])
            ]
            self.optimizer = kind(entries, **options)
        return self.optimizer

    def compute_loss(  # type: ignore[override]
        self,
        model: nn.Module,
        inputs: dict,
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """``lm_weight`` times the language-model loss plus the weighted loss on P_vocab.

        Each loss is this micro-batch's share of the mean over the whole step, so that accumulating
        gradients equals one large batch. With ``num_items_in_batch`` the Trainer adds the shares
        up; without, it divides by the accumulation steps, so they are multiplied here. Likewise
        the gradients of several processes are averaged, so the shares are multiplied by their
        number.
        """
        parts: dict[str, Tensor] = {}
        tiles = inputs.get("pixel_values")
        self.seen_tiles = None if tiles is None else tiles[:TELEMETRY_TILES]
        steps = getattr(self, "current_gradient_accumulation_steps", 1)
        processes = self.accelerator.num_processes
        if self.lm_weight:
            outputs = model(
                **inputs,
                skip_logits=True,
                use_cache=False,
                packing=self.packing,
                num_items_in_batch=num_items_in_batch,
            )
            parts["lm_loss"] = outputs.lm_loss
            if num_items_in_batch is None:
                parts["lm_loss"] = outputs.lm_loss / steps
            elif self.args.average_tokens_across_devices:
                parts["lm_loss"] = outputs.lm_loss * processes
        else:
            outputs = model(**{key: inputs[key] for key in GROUNDED if key in inputs})
        if outputs.vocab_loss is not None:
            text, blank = self._cells(inputs["vocab_targets"])
            all_text, all_blank = (max(cells, 1) for cells in self.step_cells)
            parts["vocab_text_loss"] = outputs.vocab_text_loss * text * processes / all_text
            parts["vocab_blank_loss"] = outputs.vocab_blank_loss * blank * processes / all_blank
            weight = self.model.config.blank_loss_weight
            parts["vocab_loss"] = parts["vocab_text_loss"] + weight * parts["vocab_blank_loss"]
        for key, value in {**parts, "steps": torch.tensor(1 / steps)}.items():
            self.parts[key] = self.parts.get(key, 0.0) + float(value.detach())
        loss = self.lm_weight * parts["lm_loss"] if self.lm_weight else 0
        if "vocab_loss" in parts:
            loss = loss + self.vocab_weight * parts["vocab_loss"]
        if num_items_in_batch is None:
            loss = loss * steps
        return (loss, outputs) if return_outputs else loss

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """The micro-batches of one step, whose text and blank cells on all processes are counted
        here."""
        batches, items = super().get_batch_samples(*args, **kwargs)
        counts = [self._cells(b["vocab_targets"]) for b in batches if "vocab_targets" in b]
        cells = torch.tensor([sum(kind) for kind in zip(*counts)] or [0, 0])
        if self.vocab_weight:
            cells = self._of_all(cells, "sum")
        self.step_cells = cells.tolist()
        return batches, items

    def _cells(self, targets: Tensor) -> tuple[int, int]:
        blank = int(targets.eq(self.blank_id).sum()) if self.blank_id is not None else 0
        return int((targets >= 0).sum()) - blank, blank

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add the losses' parts since the last log."""
        if "loss" in logs:
            parts = self._parts_of_all()
            steps = parts.pop("steps", 1.0)
            logs.update({key: value / steps for key, value in parts.items()})
            self.parts.clear()
            logs.update(self._telemetry())
        super().log(logs, *args, **kwargs)

    def _of_all(self, numbers: Tensor, reduction: str) -> Tensor:
        """The processes' numbers as one."""
        numbers = numbers.to(self.accelerator.device)
        return cast(Tensor, self.accelerator.reduce(numbers, reduction))

    def _parts_of_all(self) -> dict[str, float]:
        """The losses' parts, averaged over the processes; one without images has fewer."""
        if self.accelerator.num_processes == 1:
            return dict(self.parts)
        found = [[self.parts.get(key, 0.0), float(key in self.parts)] for key in PARTS_LOGGED]
        table = self._of_all(torch.tensor(found), "mean").tolist()
        return {key: mean for key, (mean, there) in zip(PARTS_LOGGED, table) if there}

    def _telemetry(self) -> dict[str, float]:
        """How sharp P_vocab is on tiles of the last step: a softmax connector that fails to learn
        shows it here first."""
        model = cast(AlignVLMForConditionalGeneration, self.accelerator.unwrap_model(self.model))
        connector = model.model.connector
        if self.seen_tiles is None or self.sharded or not isinstance(connector, AlignConnector):
            return {}
        with torch.no_grad():
            measured = connector.telemetry(model.model.encode_tiles(self.seen_tiles))
        return {"entropy": measured.entropy, "effective_vocab": measured.effective_vocab}

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> torch.utils.data.Sampler:
        # the mix is already shuffled by the seed; going through it in order makes resume trivial
        return torch.utils.data.SequentialSampler(self.train_dataset)


class Losses(TrainerCallback):
    """Logs at every checkpoint too, so that none is left half-way through a mean of the losses.

    Args:
        report: receives one line a log; ``None`` leaves printing to the progress bar.
    """

    def __init__(self, report: Callable[[str], None] | None = None) -> None:
        self.report = report

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if self.report is not None and "loss" in (logs or {}):
            shown = [key for key in logs if key.endswith("loss") or key == "effective_vocab"]
            parts = ", ".join(f"{key} {logs[key]:.3f}" for key in shown)
            self.report(f"  step {state.global_step}: {parts}")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        control.should_log |= control.should_save
        return control


def trains_in_bf16() -> bool:
    """Whether training runs in bf16 on this machine, or in fp32."""
    return default_dtype(default_device()) == torch.bfloat16


def training_arguments(
    stage: StageSpec, folder: Path, seed: int, *, bf16: bool, quiet: bool
) -> TrainingArguments:
    """The stage's settings in transformers' words."""
    # later versions of transformers call it by another name
    new = "activation_checkpointing"
    name = new if new in TrainingArguments.__dataclass_fields__ else "gradient_checkpointing"
    return TrainingArguments(
        **{name: stage.gradient_checkpointing},
        output_dir=str(folder),
        max_steps=stage.steps or -1,
        num_train_epochs=1,
        per_device_train_batch_size=stage.batch_size,
        gradient_accumulation_steps=stage.gradient_accumulation,
        learning_rate=max(stage.train.values()),
        lr_scheduler_type=stage.scheduler,
        warmup_steps=stage.warmup_ratio,
        weight_decay=stage.weight_decay,
        max_grad_norm=stage.max_grad_norm,
        adam_beta2=stage.adam_beta2,
        optim=stage.optimizer,
        logging_steps=stage.log_steps,
        logging_first_step=True,
        save_steps=stage.save_steps,
        save_total_limit=2,
        dataloader_num_workers=stage.workers,
        bf16=bf16,
        seed=seed,
        data_seed=seed,
        report_to="none",
        remove_unused_columns=False,
        label_names=["labels"],
        disable_tqdm=quiet,
        use_cpu=not torch.cuda.is_available(),
        dataloader_pin_memory=torch.cuda.is_available(),
    )
