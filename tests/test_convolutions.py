import pytest
import torch
from torch import nn

from models.convolutions import DepthwiseConv2d, TransposedConv2d


def depthwise(kind: type[nn.Conv2d], channels: int) -> nn.Module:
    return kind(channels, channels, 7, padding=3, groups=channels)


def transposed(kind: type[nn.ConvTranspose2d], channels: int) -> nn.Module:
    return kind(channels, 2 * channels, 2, stride=2)


LAYERS = [(depthwise, DepthwiseConv2d), (transposed, TransposedConv2d)]


@pytest.mark.parametrize(("make", "kind"), LAYERS)
@pytest.mark.parametrize("shape", [(3, 5, 9, 11), (2, 4, 2, 2), (2, 8, 1, 1)])
@pytest.mark.parametrize("channels_last", [False, True])
def test_gradients_equal_those_of_torch(make, kind, shape, channels_last):
    torch.manual_seed(0)
    reference, ours = make(kind.__base__, shape[1]), make(kind, shape[1])
    ours.load_state_dict(reference.state_dict())
    x, results = torch.randn(shape), []
    weights = torch.randn(reference(x).shape)
    for layer in (reference, ours):
        x_in = (x.to(memory_format=torch.channels_last) if channels_last else x).detach().requires_grad_()
        (layer(x_in) * weights).sum().backward()
        results.append((x_in.grad, layer.weight.grad, layer.bias.grad))
    for expected, ours in zip(*results):
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("make", "kind"), LAYERS)
def test_under_autocast(make, kind):
    torch.manual_seed(0)
    layer, exact = make(kind, 4), make(kind.__base__, 4)
    exact.load_state_dict(layer.state_dict())
    x = torch.randn(2, 4, 8, 8, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    y.float().square().sum().backward()
    exact(x).square().sum().backward()
    for ours, expected in zip(layer.parameters(), exact.parameters()):
        assert ours.grad.dtype == torch.float32
        torch.testing.assert_close(ours.grad, expected.grad, rtol=0.05, atol=0.05 * expected.grad.abs().max().item())
