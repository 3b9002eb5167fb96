"""Published training runs, and the hours that ``alignvlm plan`` says for them.

Only runs whose samples, visual tokens, GPUs and hours their authors publish. Text is taken at the
plan's own 128 tokens a sample, since nobody publishes its length. Where images are cut into tiles,
every one is taken at the most tiles, an upper bound, as the plan's tables do. LLaVA-NeXT's hours
are taken as those of its second stage: it "re-uses the pretrained connector of LLaVA-1.5".
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

from alignvlm.connectors.configs import ConnectorConfigBase, connector_config
from alignvlm.data.sources.specs import HubSourceSpec
from alignvlm.train.plan import Plan, plan
from alignvlm.train.recipe import ModelSpec, Recipe, StageSpec, TilingSpec

MFU = 0.35
"""What ``alignvlm plan`` assumes."""
LLAVA = "https://github.com/haotian-liu/LLaVA#train"
OPEN = "https://github.com/xiaoachen98/Open-LLaVA-NeXT#training-overview"
NEXT = "https://llava-vl.github.io/blog/2024-01-30-llava-next/"
MOBILE = "https://arxiv.org/abs/2312.16886"


@dataclass(frozen=True)
class Published:
    """One run.

    Attributes:
        name: of the model.
        text: a key of :data:`TEXTS`.
        samples: of the stage that trains only the connector, and of the one that trains the
            language model; 0 where the hours do not include the stage.
        trains_vision: in the second stage.
        tiles: of an image, a thumbnail included.
        tokens: visual tokens of a tile.
        gpus, gpu, hours: as published, of all stages named together.
        source: where that stands.
    """

    name: str
    text: str
    samples: tuple[int, int]
    trains_vision: bool
    tiles: int
    tokens: int
    gpus: int
    gpu: str
    hours: float
    source: str


RUNS = (
    Published("LLaVA-1.5 7B, pretraining", "vicuna-7b", (558_000, 0), False, 1, 576,
              8, "a100-80", 3.5, LLAVA),
    Published("LLaVA-1.5 7B, instruction", "vicuna-7b", (0, 665_000), False, 1, 576,
              8, "a100-40", 10.0, LLAVA),
    Published("LLaVA-1.5 13B, pretraining", "vicuna-13b", (558_000, 0), False, 1, 576,
              8, "a100-80", 5.5, LLAVA),
    Published("LLaVA-1.5 13B, instruction", "vicuna-13b", (0, 665_000), False, 1, 576,
              8, "a100-80", 20.0, LLAVA),
    Published("Open-LLaVA-NeXT 7B, pretraining", "vicuna-7b", (558_000, 0), False, 5, 576,
              16, "a100-80", 5.0, OPEN),
    Published("Open-LLaVA-NeXT 7B, instruction", "vicuna-7b", (0, 1_000_000), True, 5, 576,
              16, "a100-80", 20.0, OPEN),
    Published("LLaVA-NeXT 7B, instruction", "vicuna-7b", (0, 760_000), True, 5, 576,
              8, "a100-80", 20.0, NEXT),
    Published("LLaVA-NeXT 13B, instruction", "vicuna-13b", (0, 760_000), True, 5, 576,
              16, "a100-80", 24.0, NEXT),
    Published("LLaVA-NeXT 34B, instruction", "yi-34b", (0, 760_000), True, 5, 576,
              32, "a100-80", 30.0, NEXT),
    Published("MobileVLM 1.7B, both stages", "mobilellama-1.4b", (595_000, 158_000), False, 1, 144,
              8, "a100-80", 5.0, MOBILE),
)  # fmt: skip


def _llama(vocab: int, width: int, inner: int, layers: int, heads: int, kv: int) -> dict[str, Any]:
    return {
        "model_type": "llama", "vocab_size": vocab, "hidden_size": width,
        "intermediate_size": inner, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": kv, "max_position_embeddings": 8192, "tie_word_embeddings": False,
    }  # fmt: skip


TEXTS = {
    "vicuna-7b": _llama(32000, 4096, 11008, 32, 32, 32),
    "vicuna-13b": _llama(32000, 5120, 13824, 40, 40, 40),
    "yi-34b": _llama(64000, 7168, 20480, 60, 56, 8),
    "mobilellama-1.4b": _llama(32000, 2048, 5632, 24, 16, 16),
}
CLIP = {
    "model_type": "siglip_vision_model", "image_size": 336, "patch_size": 14, "hidden_size": 1024,
    "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
    "vision_use_head": False,
}  # fmt: skip
"""CLIP ViT-L/14 at 336 px, without its class token: 576 cells a tile."""


def _connector(tokens: int) -> ConnectorConfigBase:
    """LLaVA's two layers; a convolution with pooling for fewer tokens than cells."""
    if tokens == 576:
        return connector_config("mlp")
    side = round(tokens**0.5)
    return connector_config(
        {"type": "c_abstractor", "out_rows": side, "out_cols": side, "hidden_size": 256, "depth": 1}
    )


def recipe(run: Published) -> Recipe:
    """The run as a recipe."""
    second = {"connector": 1e-5, "text": 1e-5} | ({"vision": 1e-6} if run.trains_vision else {})
    stages = [
        StageSpec(
            name=name,
            train=train,
            epochs=1,
            max_length=4096,
            gradient_checkpointing=True,
            sources=[HubSourceSpec(type="hub", path="published/set")],
        )
        for name, count, train in zip(
            ("pretraining", "instruction"), run.samples, ({"connector": 1e-3}, second), strict=True
        )
        if count
    ]
    tiling = TilingSpec(max_tiles=max(run.tiles - 1, 1), thumbnail=run.tiles > 1)
    model = ModelSpec(
        text=run.text,
        vision="clip-vit-large-patch14-336",
        connector=_connector(run.tokens),  # type: ignore[arg-type]
        tiling=tiling,
        token_order="tile",
        text_config=TEXTS[run.text],
        vision_config=CLIP,
    )
    return Recipe(name=run.name, model=model, stages=stages)


def planned(run: Published, mfu: float = MFU) -> Plan:
    """What ``alignvlm plan`` says for the run."""
    counts = dict(zip(("pretraining", "instruction"), run.samples, strict=True))
    given = {name: count for name, count in counts.items() if count}
    return plan(recipe(run), run.gpus, run.gpu, mfu=mfu, samples=given)


@cache
def table() -> str:
    """All runs as a Markdown table."""
    head = (
        "| run | samples | visual tokens | GPUs | published hours | planned hours "
        "| planned / published | MFU of the run |\n"
        "| --- | ---: | ---: | --- | ---: | ---: | ---: | ---: |"
    )
    rows = []
    for run in RUNS:
        hours = planned(run).hours
        ratio = hours / run.hours
        rows.append(
            f"| [{run.name}]({run.source}) | {' + '.join(f'{n:,}' for n in run.samples if n)} | "
            f"{run.tiles * run.tokens:,} | {run.gpus} {run.gpu} | {run.hours:g} | {hours:.1f} | "
            f"{ratio:.2f} | {MFU * ratio:.2f} |"
        )
    return "\n".join([head, *rows])
