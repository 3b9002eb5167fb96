"""Whole models, ALIGN against MLP: page to first token, tokens a second, training step.

    python -m benchmarks.end_to_end
    python -m benchmarks.end_to_end --language-model llama-3.2-1b --grid 3x3 --device cuda
    python -m benchmarks.end_to_end --model smol --page examples/pages/receipt.png

The competing models share one encoder and one language model and run in alternation. Weights are
random and the page is noise, of which nothing is dropped, unless ``--model`` names a trained ALIGN
model: then it reads a real page, and drops what is blank as it does in use. Appends to
``benchmarks/results/end_to_end-DEVICE-DATE.csv``; docs/performance.md says what the columns mean.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import LlamaConfig, SiglipVisionConfig

from alignvlm import AlignVLMConfig, AlignVLMForConditionalGeneration
from alignvlm.connectors import AlignConnector, build_connector
from alignvlm.connectors.configs import connector_config
from alignvlm.errors import ConfigError
from alignvlm.model.outputs import Encoded
from alignvlm.processing.image_processor import AlignVLMImageProcessor

from . import measure as m

FIELDS = (
    *m.ENVIRONMENT,
    *("device", "dtype", "language_model", "weights", "connector", "kept_tokens", "parameters_m"),
    *("connector_m", "visual_tokens", "prompt_tokens", "phase", "repeats", "median_ms", "q20_ms"),
    *("q80_ms", "ratio", "ratio_q20", "ratio_q80", "baseline", "per_second", "peak_mib"),
    "skipped",
)
BASELINE = "mlp"
VARIANTS = {"inference": ("align", "align-pruned", "mlp"), "training": ("align", "mlp")}
PAGE_VARIANTS = {
    "inference": ("align", "align-pruned", "align-all", "mlp-text", "mlp"),
    "training": ("align", "align-grounded", "align-all", "mlp-text", "mlp"),
}
"""On a page with text. ``-grounded``: with the loss on P_vocab. ``-all``: nothing is dropped.
``mlp`` reads all cells, for it cannot tell which are blank; ``mlp-text`` is told."""
BASELINES = dict.fromkeys(("align", "align-grounded", "align-pruned"), "mlp-text")
"""What a variant is compared with where blanks are dropped: as many tokens; else ``mlp``."""
GROUNDED_BLANKS = 200
"""Blank cells that are scored, as fine-tuning does."""
KEPT_TOKENS = 3400
"""Vocabulary of ``align-pruned``, the size the paper prunes to in inference."""
ANSWER_TOKENS = 32
"""Supervised tokens of a training step."""
PHASES = {
    "inference": ("encoder", "connector", "first token", "token"),
    "training": ("training step",),
}


def _vision(width: int, inner: int, layers: int, heads: int, pixels: int) -> dict[str, int]:
    return {
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "image_size": pixels,
        "patch_size": 14,
    }


def _text(vocab: int, width: int, inner: int, layers: int, heads: int, kv: int) -> dict[str, int]:
    return {
        "vocab_size": vocab,
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
    }


SIZES = {
    "smollm2-135m": (_vision(384, 1536, 12, 6, 448), _text(49152, 576, 1536, 30, 9, 3)),
    "llama-3.2-1b": (_vision(1152, 4304, 27, 16, 384), _text(128256, 2048, 8192, 16, 32, 8)),
    "tiny": (_vision(24, 32, 1, 2, 28), _text(512, 32, 48, 2, 2, 1)),
}
"""Vision encoder and language model: of ``smollm2-grounded``, of the paper, and a toy's."""


def make_config(name: str, connector: str) -> AlignVLMConfig:
    """A model config in the proportions of ``name``."""
    vision, text = SIZES[name]
    return AlignVLMConfig(
        SiglipVisionConfig(vision_use_head=False, **vision),
        LlamaConfig(tie_word_embeddings=True, max_position_embeddings=16384, **text),
        connector,
        image_token_id=3,
        row_end=False,
    )


def variant_of(
    base: AlignVLMForConditionalGeneration, variant: str, said: torch.Tensor
) -> AlignVLMForConditionalGeneration:
    """A model with another connector around ``base``'s own encoder and language model; a pruned
    one keeps the tokens ``said`` on the page."""
    kind = variant.split("-")[0]
    if base.config.connector.type == kind and variant in (kind, f"{kind}-grounded"):
        return base
    config = AlignVLMConfig.from_dict(base.config.to_dict())
    if kind != "align" or variant == "align-all":
        config.blank_threshold = None
    keeps_own = base.config.connector.type == kind
    chosen = base.config.connector if keeps_own else connector_config(kind)
    config.connector_config = chosen.model_dump()
    with torch.device("meta"):
        model = AlignVLMForConditionalGeneration(config)
    model.model.vision_model = base.model.vision_model
    model.model.language_model = base.model.language_model
    model.lm_head = base.lm_head
    connector = build_connector(
        chosen,
        config.vision_hidden_size,
        config.text_config.hidden_size,
        config.connector_vocab_size,
        config.feature_grid,
    )
    if keeps_own:
        connector.load_state_dict(base.model.connector.state_dict())
    else:
        connector.apply(model._init_weights)
        if isinstance(connector, AlignConnector):
            connector.init_from_lm_head(base.lm_head.weight)
    weight = base.lm_head.weight
    model.model.connector = connector.to(weight.device, weight.dtype)
    model.generation_config = base.generation_config
    if variant == "align-pruned":
        covered = config.connector_vocab_size
        drawn = torch.randperm(covered, generator=torch.Generator().manual_seed(0))
        drawn = torch.cat([said.cpu(), drawn[~torch.isin(drawn, said.cpu())]])
        model.model.prune_vocabulary(drawn[: min(KEPT_TOKENS, covered // 4)].to(weight.device))
    return model.eval()  # type: ignore[return-value]


def tell(model: AlignVLMForConditionalGeneration, page: Encoded) -> None:
    """Let a model without P_vocab drop what another one found blank on the page."""
    own = model.model.encode

    def encode(*args: Any, **keys: Any) -> Encoded:
        return own(*args, **keys)._replace(blank=page.blank, order=page.order)

    model.model.encode = encode  # type: ignore[method-assign]


class Workload:
    """The models of one comparison and the page and prompt they all get."""

    def __init__(self, request: dict[str, Any], variants: Sequence[str]) -> None:
        torch.manual_seed(0)
        self.device, self.new_tokens = request["device"], request["new_tokens"]
        dtype = m.dtype_of(request["dtype"])
        base = (self._trained if request["model"] else self._random)(request)
        base = base.to(self.device, dtype).eval()
        said = self._said(base) if request["model"] else torch.empty(0, dtype=torch.long)
        self.models = {name: variant_of(base, name, said) for name in variants}
        self.targets: torch.Tensor | None = None
        if base.config.blank_threshold is not None:
            self._drop(base)
        self.optimizers: dict[str, torch.optim.Optimizer] = {}

    def _random(self, request: dict[str, Any]) -> AlignVLMForConditionalGeneration:
        config = make_config(request["language_model"], BASELINE)
        rows, cols = request["grid"]
        size = {"height": config.tile_height, "width": config.tile_width}
        tiles = rows * cols
        self.images = AlignVLMImageProcessor(size=size, max_tiles=tiles, min_tiles=tiles)
        noise = np.random.default_rng(0).integers(
            0, 256, (rows * size["height"], cols * size["width"], 3), dtype=np.uint8
        )
        self.page = Image.fromarray(noise)
        visual = tiles * config.tokens_per_tile
        ids = torch.randint(4, config.text_config.vocab_size, (1, visual + 32))
        ids[:, 8 : 8 + visual] = config.image_token_id
        self.input_ids = ids.to(self.device)
        return AlignVLMForConditionalGeneration(config)

    def _trained(self, request: dict[str, Any]) -> AlignVLMForConditionalGeneration:
        from alignvlm.compose.assemble import load_pretrained
        from alignvlm.documents.pictures import open_image
        from alignvlm.weights.resolve import resolve

        model, processor = load_pretrained(resolve(request["model"]), torch.float32)
        model.eval()
        if model.config.connector.type != "align":
            raise ConfigError(f"{request['model']}: --model takes a model with ALIGN")
        self.images = processor.image_processor
        self.page = open_image(request["page"])
        question = {"type": "text", "text": "What is the total?"}
        content = [{"type": "image", "image": self.page}, question]
        batch = processor.apply_chat_template(
            [[{"role": "user", "content": content}]],
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            add_generation_prompt=True,
        )
        self.input_ids = batch["input_ids"].to(self.device)
        return model

    @torch.no_grad()
    def _said(self, base: AlignVLMForConditionalGeneration) -> torch.Tensor:
        """The most probable token of each cell of the page."""
        batch = self.batch()
        features = base.model.encode_tiles(batch["pixel_values"], batch["image_grids"])
        connector = base.model.connector
        assert isinstance(connector, AlignConnector)
        rows = connector.vocab_distribution(features).argmax(-1).unique()
        return rows if connector.token_ids is None else connector.token_ids[rows]

    @torch.no_grad()
    def _drop(self, base: AlignVLMForConditionalGeneration) -> None:
        """What is blank on the page, for those who are told; and targets as grounding has them."""
        batch = self.batch()
        page = base.model.encode(batch["pixel_values"], batch["image_grids"])
        assert page.blank is not None
        if "mlp-text" in self.models:
            tell(self.models["mlp-text"], page)
        (text,) = (~blank for blank in page.blank)
        cells = torch.full((len(text),), -100, device=text.device)
        blank = cells.masked_fill(~text[:, 0], base.config.blank_token_id or 0)
        blank[(~text[:, 0]).nonzero()[GROUNDED_BLANKS:, 0]] = -100
        blank[text[:, 0]] = 17  # any token: what it costs does not depend on which
        self.targets = blank.view(len(batch["pixel_values"]), -1)

    def batch(self) -> dict[str, torch.Tensor]:
        """Tiles of the page and the prompt, as the models take them."""
        tiles = self.images([self.page], return_tensors="pt").to(self.device)
        return {"input_ids": self.input_ids, **tiles}

    @torch.inference_mode()
    def inference(self, name: str) -> m.Times:
        """Seconds of encoder, connector, page to first token, and each token after it."""
        model, core = self.models[name], self.models[name].model
        batch = self.batch()
        start = m.clock(self.device)
        features = core.encode_tiles(batch["pixel_values"], batch["image_grids"])
        middle = m.clock(self.device)
        core.connector(features, core.text_embedding())
        times = {"encoder": middle - start, "connector": m.clock(self.device) - middle}
        del features
        return {**times, **self.answer(model)}

    @torch.inference_mode()
    def answer(self, model: AlignVLMForConditionalGeneration) -> m.Times:
        """``first token`` from the page image, and ``token``: each one after it."""
        moments: list[float] = []
        start = m.clock(self.device)
        model.generate(
            **self.batch(),
            max_new_tokens=self.new_tokens,
            min_new_tokens=self.new_tokens,
            do_sample=False,
            pad_token_id=0,
            streamer=_Moments(moments, self.device),
        )
        tokens = moments[-self.new_tokens :]
        each = (tokens[-1] - tokens[0]) / (len(tokens) - 1)
        return {"first token": tokens[0] - start, "token": each}

    def training(self, name: str) -> m.Times:
        """Seconds of one AdamW step on the page, all parts training."""
        model = self.models[name].train()
        if name not in self.optimizers:
            self.optimizers[name] = torch.optim.AdamW(model.parameters(), lr=1e-6)
        batch = self.batch()
        vocab = model.config.text_config.vocab_size
        answer = torch.randint(4, vocab, (1, ANSWER_TOKENS), device=self.device)
        labels = torch.cat([torch.full_like(self.input_ids, -100), answer], dim=1)
        batch["input_ids"] = torch.cat([self.input_ids, answer], dim=1)
        if name == "align-grounded" and self.targets is not None:
            batch["vocab_targets"] = self.targets
        start = m.clock(self.device)
        model(**batch, labels=labels, skip_logits=True).loss.backward()
        self.optimizers[name].step()
        self.optimizers[name].zero_grad(set_to_none=True)
        return {"training step": m.clock(self.device) - start}

    def describe(self, name: str) -> dict[str, Any]:
        """Columns of the csv that say what was measured."""
        model = self.models[name]
        connector = model.model.connector
        image_id = model.config.image_token_id
        return {
            "connector": name,
            "kept_tokens": getattr(connector.config, "kept_tokens", None) or "",
            "parameters_m": sum(p.numel() for p in model.parameters()) / 1e6,
            "connector_m": sum(p.numel() for p in connector.parameters()) / 1e6,
            "visual_tokens": int((self.input_ids == image_id).sum()),
            "prompt_tokens": self.input_ids.shape[1],
        }


class _Moments:
    """Notes when each token comes out; a streamer as ``generate`` takes it."""

    def __init__(self, moments: list[float], device: str) -> None:
        self.moments, self.device = moments, device

    def put(self, value: Any) -> None:
        self.moments.append(m.clock(self.device))

    def end(self) -> None:
        pass


def work(request: dict[str, Any]) -> dict[str, Any]:
    """What a worker process does."""
    m.set_threads(request["threads"])
    kind, variants = request["kind"], request["variants"]
    if request["mode"] == "memory":
        warm = {**request, "language_model": "tiny", "grid": (1, 1), "model": None}
        getattr(Workload(warm, variants), kind)(variants[0])  # libraries only
        load = Workload(request, variants)
        peak = m.PeakMemory(request["device"])
        peak.start()
        getattr(load, kind)(variants[0])
        return {"peak": peak.peak()}
    load = Workload(request, variants)
    step = getattr(load, kind)
    runs = {name: (lambda name=name: step(name)) for name in variants}
    for run in runs.values():
        run()  # warm-up
    taken = m.time_rounds(runs, request["repeats"], request["patience"])
    return {name: {"times": taken[name], **load.describe(name)} for name in variants}


def estimated_bytes(request: dict[str, Any]) -> int:
    """Rough peak of the process that times: weights, and in training gradients and two optimisers'
    moments; activations of a transformer layer at 18 values of its width a token."""
    itemsize = m.dtype_of(request["dtype"]).itemsize
    with torch.device("meta"):
        model = AlignVLMForConditionalGeneration(make_config(request["language_model"], "align"))
    rows, cols = request["grid"]
    tokens = rows * cols * model.config.tokens_per_tile + 64
    count = sum(p.numel() for p in model.parameters())
    if request["kind"] == "inference":
        return itemsize * 2 * count + m.MIB * 512
    kept = sum(
        18 * part.hidden_size * part.num_hidden_layers
        for part in (model.config.text_config, model.config.vision_config)
    )
    return itemsize * (7 * count + tokens * kept) + m.MIB * 512


def configuration(request: dict[str, Any], timeout_s: float) -> list[dict[str, Any]]:
    """All rows of one kind of run, inference or training."""
    names, module = request["variants"], "benchmarks.end_to_end"
    why = None if request["model"] else m.too_big(estimated_bytes(request), request["device"])
    if why:
        return [{"connector": name, "skipped": f"{request['kind']}: {why}"} for name in names]
    timed = m.run_worker(module, {**request, "mode": "time"}, timeout_s)
    if "skipped" in timed:
        return [{"connector": name, **timed} for name in names]
    rows = []
    for name in names:
        alone = {**request, "mode": "memory", "variants": [name]}
        memory = m.run_worker(module, alone, timeout_s)
        shown = dict(timed[name])
        times = shown.pop("times")
        for phase in PHASES[request["kind"]]:
            against = BASELINES.get(name, BASELINE) if request["model"] else BASELINE
            columns = m.time_columns(times, phase, timed[against]["times"])
            columns |= {"baseline": against, "per_second": 1000 / columns["median_ms"]}
            row = {**shown, "phase": phase, **columns}
            if phase in ("first token", "training step"):
                row.update(
                    {"skipped": f"memory: {memory['skipped']}"} if "skipped" in memory else {}
                )
                row.update({"peak_mib": memory["peak"] / m.MIB} if "peak" in memory else {})
            rows.append(row)
    return rows


def show(row: dict[str, Any]) -> str:
    """One line of progress."""
    where = f"{row['connector']:12s} {row.get('phase', ''):13s}"
    if "median_ms" not in row:
        return f"  {where} skipped: {row['skipped']}"
    peak = f"{row['peak_mib']:9.1f} MiB" if "peak_mib" in row else ""
    return f"  {where} {row['median_ms']:10.2f} ms {row['ratio']:6.2f} x {row['baseline']} {peak}"


def grid_of(text: str) -> tuple[int, int]:
    """``"3x3"``: tiles down and across."""
    try:
        rows, cols = (int(part) for part in text.split("x"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not ROWSxCOLS") from None
    if rows < 1 or cols < 1:
        raise argparse.ArgumentTypeError(f"{text!r} needs positive numbers")
    return rows, cols


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.end_to_end", description=__doc__.splitlines()[0]
    )
    add = parser.add_argument
    add("--language-model", choices=SIZES, default="smollm2-135m")
    add("--model", help="a trained ALIGN model; the MLP beside it stays random")
    add("--page", default=str(m.ROOT / "examples/pages/receipt.png"), help="what --model reads")
    add("--grid", type=grid_of, default=(1, 1), metavar="ROWSxCOLS", help="tiles of the page")
    add("--kind", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    add("--new-tokens", type=int, default=16)
    add("--smoke", action="store_true", help="the tiny size, two rounds, no csv kept by default")
    m.add_options(parser, repeats=5, patience=180)
    options = parser.parse_args(arguments)
    options.dtype = options.dtype or "float32"
    if options.smoke:
        options.language_model, options.repeats, options.new_tokens = "tiny", 2, 3
    if options.new_tokens < 2 or options.repeats < 1:
        parser.error("--new-tokens must be at least 2 and --repeats at least 1")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    if options.worker:
        return m.serve(work, options.worker)
    out = m.out_folder(options.out, options.smoke)
    file = m.result_file("end_to_end", options.device, out)
    keys = ("language_model", "model", "page", "grid", "new_tokens", "dtype", "device", "threads")
    shared = {
        **m.environment(options.device, options.threads),
        "device": options.device.split(":")[0],
        "dtype": options.dtype,
        "language_model": "" if options.model else options.language_model,
        "weights": f"{options.model}, {Path(options.page).name}" if options.model else "random",
    }
    for kind in options.kind:
        request = {key: getattr(options, key) for key in (*keys, "repeats", "patience")}
        variants = (PAGE_VARIANTS if options.model else VARIANTS)[kind]
        request.update(kind=kind, variants=list(variants))
        print(f"{kind}: {options.model or options.language_model}, {options.dtype}", flush=True)
        rows = configuration(request, options.timeout)
        m.write_rows(file, FIELDS, ({**shared, **row} for row in rows))
        print("\n".join(show(row) for row in rows), flush=True)
    print(f"written: {file}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
