"""The vocabulary mixture as others would write it, one function each, and what each costs.

All compute ``softmax(LayerNorm(W2 x)) E`` (Eq. 1-2, arXiv 2502.01341) from the same
:class:`Inputs`. G = 2·N·V·D operations is one product of ``[N, D]`` with ``[D, V]``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from alignvlm.ops import vocab_mixture

from .measure import dtype_of

EPS = 1e-5
SETTINGS = ("trained", "frozen", "tied", "inference")
Setting = Literal["trained", "frozen", "tied", "inference"]
"""What gets a gradient. ``trained``: x, W2, E, γ and β. ``frozen``: all but E. ``tied``: all, with
W2 and E one tensor. ``inference``: nothing."""
ROW_BLOCK_BYTES = {"cpu": 64 * 2**20, "cuda": 512 * 2**20}
"""Row-chunked: logits of one block of rows are kept near this size."""


@dataclass(frozen=True)
class Shape:
    """N visual tokens, V vocabulary, D width."""

    rows: int
    vocab: int
    width: int

    @classmethod
    def parse(cls, text: str) -> Shape:
        """``"1024,49152,576"``.

        Raises:
            ValueError: not three positive integers.
        """
        try:
            shape = cls(*(int(part) for part in text.split(",")))
        except (TypeError, ValueError):
            raise ValueError(f"shape {text!r} is not N,V,D") from None
        if min(shape.rows, shape.vocab, shape.width) < 1:
            raise ValueError(f"shape {text!r} needs positive numbers")
        return shape

    def __str__(self) -> str:
        return f"{self.rows},{self.vocab},{self.width}"

    @property
    def product_flops(self) -> int:
        """G: multiplications and additions of one ``N x V x D`` product."""
        return 2 * self.rows * self.vocab * self.width


@dataclass
class Inputs:
    """Arguments of the op. ``upstream`` is the gradient of the output, ``None`` in inference."""

    x: Tensor
    weight: Tensor
    table: Tensor
    norm_weight: Tensor | None
    norm_bias: Tensor | None
    upstream: Tensor | None

    def leaves(self) -> list[Tensor]:
        """Tensors that get a gradient; a tied table once."""
        own = (self.x, self.weight, self.table, self.norm_weight, self.norm_bias)
        return list({id(t): t for t in own if t is not None and t.requires_grad}.values())

    def first_rows(self, count: int) -> Inputs:
        """The same with the first ``count`` rows of x and of the upstream gradient."""
        x = self.x.detach()[:count].clone().requires_grad_(self.x.requires_grad)
        upstream = None if self.upstream is None else self.upstream[:count]
        return replace(self, x=x, upstream=upstream)


def random_inputs(
    shape: Shape, dtype: str, device: str, setting: Setting, affine: bool, seed: int = 0
) -> Inputs:
    """Inputs drawn from normal distributions: x of unit variance as after the inner LayerNorm."""
    generator = torch.Generator(device).manual_seed(seed)

    def draw(*size: int, scale: float = 1.0, mean: float = 0.0) -> Tensor:
        values = torch.randn(size, generator=generator, device=device)
        return values.mul_(scale).add_(mean).to(dtype_of(dtype))

    x = draw(shape.rows, shape.width)
    weight = draw(shape.vocab, shape.width, scale=0.05)
    table = weight if setting == "tied" else draw(shape.vocab, shape.width, scale=0.05)
    gamma = draw(shape.vocab, scale=0.1, mean=1.0) if affine else None
    beta = draw(shape.vocab, scale=0.1) if affine else None
    upstream = draw(shape.rows, shape.width)
    return with_gradients(Inputs(x, weight, table, gamma, beta, upstream), setting)


@torch.no_grad()
def model_inputs(
    folder: str | Path, rows: int, dtype: str, device: str, setting: Setting
) -> Inputs:
    """Real activations: a trained ALIGN model's own x on rendered pages, with its own weights.

    Raises:
        AlignVLMError: no such model, or its connector is not ALIGN.
    """
    from alignvlm.compose.assemble import load_pretrained
    from alignvlm.data.synthetic.render import RenderSpec, render_page
    from alignvlm.errors import ConfigError
    from alignvlm.weights.resolve import resolve

    model, processor = load_pretrained(resolve(folder), torch.float32)
    model.eval()
    if model.config.connector.type != "align":
        raise ConfigError(f"{folder}: real activations need the 'align' connector")
    align, core = model.model.connector, model.model
    spec = RenderSpec(layout="form", font_px=(28, 28), fonts=("DejaVuSans",))
    hidden: list[Tensor] = []
    seed = 0
    while sum(len(part) for part in hidden) < rows:
        page = render_page(spec, seed).image
        tiles = processor.image_processor([page], return_tensors="pt").to(model.device)
        features = core.encode_tiles(tiles["pixel_values"])
        hidden.append(align.hidden(features).flatten(0, 2))
        seed += 1

    def own(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor.detach().to(device, dtype_of(dtype), copy=True)

    weight, table = own(align.w2.weight), own(align._table(core.text_embedding()))
    assert weight is not None and table is not None
    x = own(torch.cat(hidden)[:rows])
    assert x is not None
    inputs = Inputs(
        x,
        weight,
        weight if setting == "tied" else table,
        own(align.outer_norm_weight),
        own(align.outer_norm_bias),
        torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).to(x),
    )
    return with_gradients(inputs, setting)


def with_gradients(inputs: Inputs, setting: Setting) -> Inputs:
    """Ask for the gradients that ``setting`` names."""
    if setting == "inference":
        inputs.upstream = None
        return inputs
    for tensor in (inputs.x, inputs.weight, inputs.norm_weight, inputs.norm_bias):
        if tensor is not None:
            tensor.requires_grad_(True)
    inputs.table.requires_grad_(setting != "frozen")
    return inputs


# --- implementations -----------------------------------------------------------------------------

Implementation = Callable[[Inputs], Tensor]


def dense(
    x: Tensor, weight: Tensor, table: Tensor, gamma: Tensor | None, beta: Tensor | None
) -> Tensor:
    """Four library calls, as a straightforward author writes it."""
    logits = F.layer_norm(F.linear(x, weight), (weight.shape[0],), gamma, beta, EPS)
    return torch.softmax(logits, dim=-1) @ table


def naive(i: Inputs) -> Tensor:
    """Autograd on the dense formula."""
    return dense(i.x, i.weight, i.table, i.norm_weight, i.norm_bias)


def checkpointed(i: Inputs) -> Tensor:
    """Nothing is kept for the backward pass; the forward pass runs again in it."""
    arguments = (i.x, i.weight, i.table, i.norm_weight, i.norm_bias)
    return checkpoint(dense, *arguments, use_reentrant=False)  # type: ignore[return-value]


def row_block(vocab: int, device: torch.device) -> int:
    """Rows of a block of the row-chunked implementation."""
    budget = ROW_BLOCK_BYTES["cuda" if device.type == "cuda" else "cpu"]
    return max(64, budget // (4 * vocab))


def row_chunked(i: Inputs) -> Tensor:
    """The dense formula on some rows at a time, each block checkpointed."""
    rows = row_block(i.weight.shape[0], i.x.device)
    blocks = i.x.split(rows)
    rest = (i.weight, i.table, i.norm_weight, i.norm_bias)
    return torch.cat([checkpoint(dense, x, *rest, use_reentrant=False) for x in blocks])  # type: ignore[misc]


_compiled: dict[str, Callable[..., Tensor]] = {}


def compiled(i: Inputs) -> Tensor:
    """``torch.compile`` of the dense formula, static shapes."""
    if "dense" not in _compiled:
        _compiled["dense"] = torch.compile(dense, dynamic=False)
    return _compiled["dense"](i.x, i.weight, i.table, i.norm_weight, i.norm_bias)


def attention(i: Inputs) -> Tensor:
    """One head of attention: q = [r x, −μ r, 1], k = [γ∘W2, γ, β], v = E, scale 1.

    μ and r = (σ² + ε)^-½ come from the mean row and the centred second moment of W2, so q·k is
    the normalised logit. v gets two columns of zeros, since flash kernels want one head size.
    """
    dtype = torch.promote_types(i.x.dtype, torch.float32)
    x, weight = i.x.to(dtype), i.weight.to(dtype)
    mean = weight.mean(0)
    centred = weight - mean
    covariance = centred.T @ centred / len(weight)
    mu = x @ mean
    r = torch.rsqrt(((x @ covariance) * x).sum(-1) + EPS)
    ones = torch.ones_like(r)
    gamma = weight.new_ones(len(weight)) if i.norm_weight is None else i.norm_weight.to(dtype)
    beta = weight.new_zeros(len(weight)) if i.norm_bias is None else i.norm_bias.to(dtype)
    query = torch.cat((x * r[:, None], -(mu * r)[:, None], ones[:, None]), 1).to(i.x.dtype)
    key = torch.cat((weight * gamma[:, None], gamma[:, None], beta[:, None]), 1).to(i.x.dtype)
    value = F.pad(i.table, (0, 2))
    mixed = F.scaled_dot_product_attention(
        query[None, None], key[None, None], value[None, None], scale=1.0
    )
    return mixed[0, 0, :, : i.table.shape[1]]


def ours(
    impl: Literal["auto", "reference", "chunked"], chunk_size: int | None, keep: float | None = None
) -> Implementation:
    """``alignvlm.ops.vocab_mixture`` with one of its own implementations, and ``keep`` GiB for
    kept logits."""

    def run(i: Inputs) -> Tensor:
        output = vocab_mixture(
            i.x,
            i.weight,
            i.table,
            norm_weight=i.norm_weight,
            norm_bias=i.norm_bias,
            eps=EPS,
            impl=impl,
            chunk_size=chunk_size,
            keep_logits_gib=keep,
        ).output
        assert output is not None
        return output

    return run


RIVALS: dict[str, Implementation] = {
    "naive": naive,
    "checkpoint": checkpointed,
    "row-chunked": row_chunked,
    "compiled": compiled,
    "attention": attention,
}
STREAMED = "streamed"
"""Ours, told to keep no logits."""
WARM = "streamed-warm"
"""The same on weights that did not change since the last call, as within an accumulated gradient:
their row statistics are remembered."""
OURS = ("chunked", STREAMED, WARM, "reference")
IMPLS = ("chunked", STREAMED, WARM, *RIVALS)
"""Measured by default; ``chunked`` chooses its way itself, ``reference`` is our dense oracle."""


def implementation(name: str, chunk_size: int | None = None) -> Implementation:
    """The function behind a name.

    Raises:
        KeyError: unknown name.
    """
    if name not in OURS:
        return RIVALS[name]
    keep = 0 if name in (STREAMED, WARM) else None
    return ours("reference" if name == "reference" else "chunked", chunk_size, keep)


# --- an oracle for a few rows --------------------------------------------------------------------


def oracle(inputs: Inputs, block: int = 4096) -> tuple[Tensor, Tensor | None]:
    """Output and dx in fp64, for few rows: the dense formula over blocks of W2 and E."""
    x = inputs.x.detach().double().requires_grad_(inputs.upstream is not None)

    def rows(tensor: Tensor) -> Iterator[Tensor]:
        return (part.detach().double() for part in tensor.split(block))

    def vector(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor.detach().double()

    z = torch.cat([x @ part.T for part in rows(inputs.weight)], dim=1)
    gamma, beta = vector(inputs.norm_weight), vector(inputs.norm_bias)
    p = torch.softmax(F.layer_norm(z, (z.shape[1],), gamma, beta, EPS), dim=-1)
    parts = zip(p.split(block, dim=1), rows(inputs.table), strict=True)
    output = x.new_zeros(len(x), inputs.table.shape[1])
    for share, part in parts:
        output = output + share @ part
    if inputs.upstream is None:
        return output.detach(), None
    (dx,) = torch.autograd.grad(output, x, inputs.upstream.double())
    return output.detach(), dx


def relative_error(value: Tensor, truth: Tensor) -> float:
    """Largest deviation over the largest true magnitude."""
    return float((value.detach().double() - truth).abs().max() / truth.abs().max())


# --- costs ---------------------------------------------------------------------------------------


def standard_flops(shape: Shape, setting: Setting, phase: str) -> int:
    """Operations no implementation can avoid; what is computed twice counts once.

    Forward 2G. Backward 4G (dP, dE, dx, dW2), 3G with E frozen.
    """
    g = shape.product_flops
    backward = {"trained": 4, "tied": 4, "frozen": 3, "inference": 0}[setting]
    products = {"forward": 2, "backward": backward, "both": 2 + backward}[phase]
    return products * g


def gradient_bytes(inputs: Inputs) -> int:
    """Size of the weights' gradients (not x's): results that every implementation returns."""
    return sum(t.numel() * t.element_size() for t in inputs.leaves() if t is not inputs.x)


def estimated_bytes(name: str, shape: Shape, setting: Setting, itemsize: int, device: str) -> int:
    """Rough peak of one run with its inputs, to skip what cannot fit."""
    matrix = shape.vocab * shape.width
    weights = matrix * (1 if setting == "tied" else 2)
    trained = 0 if setting == "inference" else matrix if setting in ("frozen", "tied") else weights
    total = itemsize * (weights + trained) + 4 * trained + 16 * shape.rows * shape.width
    logits = shape.rows * shape.vocab * itemsize
    copies = 2 if setting == "inference" else 4
    if name in ("naive", "checkpoint", "compiled", "reference"):
        size = 4 / itemsize if name == "reference" else 1
        total += int((copies + (name == "reference")) * size * logits)
    elif name == "row-chunked":
        block = row_block(shape.vocab, torch.device(device.split(":")[0]))
        total += copies * min(block, shape.rows) * shape.vocab * itemsize
    elif name == "attention":
        total += 4 * 6 * matrix + (copies * logits if device.startswith("cuda") else 0)
    else:
        total += 256 * 2**20 + (2 * logits if name == "chunked" else 0)
    return total


def describe(inputs: Inputs) -> dict[str, Any]:
    """Shape of the inputs, as the csv names it."""
    return {
        "n": len(inputs.x),
        "v": inputs.weight.shape[0],
        "d": inputs.weight.shape[1],
        "affine": "yes" if inputs.norm_weight is not None else "no",
    }
