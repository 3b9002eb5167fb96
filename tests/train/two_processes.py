"""Run by torchrun: ``alignvlm train`` with FSDP2 or ZeRO-3 on CPUs, as recipes/accelerate/ says.

torchrun --nproc-per-node 2 two_processes.py fsdp2|zero3|ddp RECIPE OUT [--resume]
"""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from typing import Any

import yaml
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch.distributed.fsdp import FSDPModule

from alignvlm.train import load_recipe, train
from alignvlm.train import training as run
from alignvlm.train.stages import StageTrainer

CONFIGS = Path(__file__).parents[2] / "recipes" / "accelerate"


def settings(name: str) -> dict[str, Any]:
    """Of a shipped accelerate configuration."""
    return yaml.safe_load((CONFIGS / f"{name}.yml").read_text("utf-8"))[
        {"fsdp2": "fsdp_config", "zero3": "deepspeed_config"}[name]
    ]


def plugin() -> FullyShardedDataParallelPlugin:
    """What ``accelerate launch`` makes of fsdp2.yml."""
    keys = settings("fsdp2")
    return FullyShardedDataParallelPlugin(
        fsdp_version=keys["fsdp_version"],
        reshard_after_forward=keys["fsdp_reshard_after_forward"],
        auto_wrap_policy=keys["fsdp_auto_wrap_policy"].lower(),
        transformer_cls_names_to_wrap=[keys["fsdp_transformer_layer_cls_to_wrap"]],
        state_dict_type=keys["fsdp_state_dict_type"],
        cpu_ram_efficient_loading=keys["fsdp_cpu_ram_efficient_loading"],
    )


class Sharding(StageTrainer):
    """The stage's trainer with FSDP2 on.

    accelerate turns it on only where there is an accelerator, so its state is told here;
    everything after that is accelerate's and the Trainer's own code, over gloo.
    """

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        for state in (PartialState, AcceleratorState):
            state._shared_state["distributed_type"] = DistributedType.FSDP
        AcceleratorState._shared_state["fsdp_plugin"] = plugin()
        self.is_fsdp_enabled = True

    def training_step(self, model: Any, *args: Any, **kwargs: Any) -> Any:
        for part in (model, model.model.language_model.layers[0]):
            assert isinstance(part, FSDPModule), type(part)
        return super().training_step(model, *args, **kwargs)


class Partitioned(StageTrainer):
    """The stage's trainer, which checks that DeepSpeed has split the weights."""

    def training_step(self, model: Any, *args: Any, **kwargs: Any) -> Any:
        assert model.zero_optimization_stage() == 3
        assert all(hasattr(p, "ds_id") for p in model.module.parameters())
        assert model.module.model.connector.w2.weight.ds_tensor.ds_numel < 400 * 32
        return super().training_step(model, *args, **kwargs)


def use_zero3() -> None:
    """Set what ``accelerate launch`` sets for zero3.yml."""
    keys = settings("zero3")
    os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"
    for key in ("zero_stage", "zero3_init_flag", "zero3_save_16bit_model",
                "offload_optimizer_device", "offload_param_device"):  # fmt: skip
        name = key.removesuffix("_flag").upper()
        os.environ[f"ACCELERATE_DEEPSPEED_{name}"] = str(keys[key]).lower()
    os.environ["ACCELERATE_GRADIENT_CLIPPING"] = keys["gradient_clipping"]
    os.environ["ACCELERATE_GRADIENT_ACCUMULATION_STEPS"] = keys["gradient_accumulation_steps"]
    # it would compile an operator for processes that share memory; gloo does without
    gloo = importlib.import_module("deepspeed.comm.torch")
    gloo.build_shm_op = lambda: None  # pyright: ignore[reportAttributeAccessIssue]


if __name__ == "__main__":
    kind, recipe, out, *rest = sys.argv[1:]
    if kind == "fsdp2":
        os.environ["FSDP_VERSION"] = "2"
        run.StageTrainer = Sharding
    if kind == "zero3":
        use_zero3()
        run.StageTrainer = Partitioned
    train(load_recipe(recipe), out, quiet=True, resume="--resume" in rest)
    run.end_processes()  # as the command does
