"""Networks with their batch norms folded say the same, and learn the same."""

from __future__ import annotations

import copy

import pytest
import torch
from tests.reader.test_model import tiny
from torch import nn

from alignvlm.reader.networks import folded, line_logits


def exact() -> nn.Module:
    """A tiny reader in double precision whose batch norms do something."""
    model = tiny().double()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for values in (module.running_mean, module.weight, module.bias):
                values.data.normal_()
            module.running_var.uniform_(0.5, 2)
    return model


def crops(seed: int = 0) -> torch.Tensor:
    return torch.randn(2, 3, 48, 72, generator=torch.Generator().manual_seed(seed)).double()


def norms(network: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())


def test_a_folded_recogniser_says_the_same():
    network = exact().recogniser
    before = norms(network)
    fast = folded(network)
    assert norms(network) == before > 0 == norms(fast)
    wanted = network(crops()).last_hidden_state  # softmax in single precision
    for one in (fast, network):
        said = line_logits(one, crops()).float().softmax(-1).double()
        torch.testing.assert_close(said, wanted, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(network(crops()).last_hidden_state, wanted)


def test_a_folded_detector_says_the_same():
    network = exact().detector
    pixels = torch.randn(1, 3, 96, 64).double()
    fast = folded(network)
    assert norms(fast) == 0
    wanted = network(pixels).last_hidden_state
    torch.testing.assert_close(fast(pixels).last_hidden_state, wanted)
    # a second call of either: what the networks note about their layers is not shared
    torch.testing.assert_close(network(pixels).last_hidden_state, wanted)
    torch.testing.assert_close(folded(network)(pixels).last_hidden_state, wanted)


def test_gradients_are_those_of_the_network_itself():
    network = exact().recogniser
    gradients = []
    for run in (folded(network), network):
        network.zero_grad()
        (line_logits(run, crops()) ** 2).sum().backward()
        gradients.append({name: p.grad.clone() for name, p in network.named_parameters()})
    assert len(gradients[0]) > 50
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], msg=name)


def test_a_new_fold_sees_new_weights():
    network = exact().recogniser
    before = line_logits(folded(network), crops())
    with torch.no_grad():
        stage = network.model.backbone.encoder.blocks[-1]
        stage.blocks[-1].channel_conv1.convolution.weight.mul_(2)
    after = line_logits(folded(network), crops())
    assert not torch.allclose(before, after)
    torch.testing.assert_close(after, line_logits(network, crops()))


def test_folding_changes_nothing_in_the_network():
    network = exact().recogniser
    before = copy.deepcopy(network.state_dict())
    layers = list(network.modules())
    folded(network)
    assert list(network.modules()) == layers
    assert network.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize("how", ["hook", "forward", "training", "adapter"])
def test_layers_that_somebody_changed_stay(how):
    network = exact().recogniser
    layer = network.head.encoder.conv_block[0]
    if how == "hook":
        layer.convolution.register_forward_hook(lambda module, args, output: 2 * output)
    elif how == "forward":
        own = layer.convolution.forward
        layer.convolution.forward = lambda x: 2 * own(x)
    elif how == "training":
        layer.normalization.train().momentum = 0.0
    else:
        layer.convolution = nn.Sequential(layer.convolution, nn.Softplus())
    fast = folded(network)
    assert norms(fast) == 1
    torch.testing.assert_close(line_logits(fast, crops()), line_logits(network, crops()))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_keeps_its_dtype(dtype):
    network = tiny().to(dtype).recogniser
    fast = folded(network)
    assert {p.dtype for p in fast.parameters()} == {dtype}
    with torch.no_grad():
        assert line_logits(fast, crops()).dtype == dtype
