"""PP-OCRv6's networks as they are run: the same numbers in less time, gradients included."""

from __future__ import annotations

from typing import TypeGuard, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from transformers.models.pp_ocrv6_small_rec.modeling_pp_ocrv6_small_rec import (
    PPOCRV6SmallRecForTextRecognition,
)

POOL = 3, 2
"""The recogniser's average over what is left of a line's height, and pairs of columns."""
Network = TypeVar("Network", bound=nn.Module)
Kind = TypeVar("Kind", bound=nn.Module)


def folded(network: Network) -> Network:
    """A network that says the same as this one, each batch norm folded into its convolution.

    It is made anew for each page, in about 15 ms, so nothing can grow stale. Its weights are this
    network's or computed from them, and gradients flow back to them. Batch norms that still gather
    statistics and layers that somebody changed or watches stay as they are.
    """
    twin = _twin(network)
    for module in list(twin.modules()):
        children = module._modules
        for name, child in children.items():
            if _untouched(child, nn.MaxPool2d) and (child.kernel_size, child.stride) == (2, 1):
                children[name] = _LargestOfFour()
        convolution = children.get("convolution")
        for name in ("normalization", "norm"):
            norm = children.get(name)
            if _untouched(convolution, nn.Conv2d, nn.ConvTranspose2d) and _fixed(norm):
                _fold(convolution, norm)
                children[name] = nn.Identity()
    return twin


def _twin(module: Network) -> Network:
    """A module that shares all tensors, but no list of them or of its parts."""
    twin = module.__new__(type(module))
    for name, value in vars(module).items():
        twin.__dict__[name] = value.copy() if isinstance(value, dict) else value
    for name, child in module._modules.items():
        twin._modules[name] = None if child is None else _twin(child)
    return twin


def _untouched(module: nn.Module | None, *kinds: type[Kind]) -> TypeGuard[Kind]:
    """Whether a module is just what its class says: no adapter, no hook, no forward of its own."""
    if module is None or type(module) not in kinds:
        return False
    return not (module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module))


def _fixed(norm: nn.Module | None) -> TypeGuard[nn.BatchNorm2d]:
    """Whether that is a batch norm that uses the statistics it has."""
    return _untouched(norm, nn.BatchNorm2d) and norm.track_running_stats and not norm.training


def _fold(convolution: nn.Conv2d | nn.ConvTranspose2d, norm: nn.BatchNorm2d) -> None:
    """Give a convolution weights that do what the batch norm after it does as well."""
    weight, bias = convolution.weight, convolution.bias
    exact = torch.promote_types(weight.dtype, torch.float32)
    scale = torch.rsqrt(norm.get_buffer("running_var").to(exact) + norm.eps)
    shift = norm.get_buffer("running_mean").to(exact).neg()
    if bias is not None:
        shift = shift + bias
    if norm.affine:
        scale = scale * norm.weight
    shift = shift * scale
    if norm.affine:
        shift = shift + norm.bias
    shape = (1, -1, 1, 1) if isinstance(convolution, nn.ConvTranspose2d) else (-1, 1, 1, 1)
    convolution._parameters["weight"] = (weight * scale.view(shape)).to(weight.dtype)
    convolution._parameters["bias"] = shift.to(weight.dtype)


class _LargestOfFour(nn.Module):
    """``MaxPool2d(2, stride=1)`` without the indices, which take most of its time on a CPU."""

    def forward(self, x: Tensor) -> Tensor:
        x = torch.maximum(x[..., 1:], x[..., :-1])
        return torch.maximum(x[..., 1:, :], x[..., :-1, :])


def line_logits(
    network: PPOCRV6SmallRecForTextRecognition, crops: Float[Tensor, "lines 3 48 width"]
) -> Float[Tensor, "lines columns alphabet"]:
    """Logits of each column's character; CTC's blank is the first.

    The average over what is left of the height is taken before the last layer, which treats every
    place alike: a sixth of the work, the same result.
    """
    encoder = network.model.backbone.encoder
    # channels last: a tenth faster on a CPU
    hidden = encoder.convolution(
        crops.to(network.dtype).contiguous(memory_format=torch.channels_last)
    )
    *blocks, last = (block for stage in encoder.blocks for block in stage.blocks)
    for block in blocks:
        hidden = block(hidden)
    hidden = last.token_squeeze_excitation(last.token_conv(hidden))
    wide = last.channel_act_fn(last.channel_conv1(hidden))
    pooled = last.channel_conv2(F.avg_pool2d(wide, POOL))
    if last.has_residual:
        pooled = pooled + F.avg_pool2d(hidden, POOL)
    return network.head.head(network.head.encoder(pooled).last_hidden_state)
