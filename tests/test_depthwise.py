import pytest
import torch
from torch import nn

from models.depthwise import DepthwiseConv2d


@pytest.mark.parametrize("shape", [(3, 5, 9, 11), (2, 4, 2, 2), (2, 8, 1, 1)])
@pytest.mark.parametrize("channels_last", [False, True])
def test_gradients_equal_those_of_torch(shape, channels_last):
    torch.manual_seed(0)
    reference = nn.Conv2d(shape[1], shape[1], 7, padding=3, groups=shape[1])
    ours = DepthwiseConv2d(shape[1], shape[1], 7, padding=3, groups=shape[1])
    ours.load_state_dict(reference.state_dict())
    x, weights = torch.randn(2, *shape)
    results = []
    for layer in (reference, ours):
        x_in = (x.to(memory_format=torch.channels_last) if channels_last else x).detach().requires_grad_()
        (layer(x_in) * weights).sum().backward()
        results.append((x_in.grad, layer.weight.grad, layer.bias.grad))
    for expected, ours in zip(*results):
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


def test_under_autocast():
    torch.manual_seed(0)
    layer = DepthwiseConv2d(4, 4, 7, padding=3, groups=4)
    x = torch.randn(2, 4, 8, 8, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    y.float().square().sum().backward()
    assert layer.weight.grad.dtype == torch.float32
    expected = torch.autograd.grad(
        nn.functional.conv2d(x, layer.weight, layer.bias, padding=3, groups=4).square().sum(), layer.weight
    )[0]
    torch.testing.assert_close(layer.weight.grad, expected, rtol=0.05, atol=0.05 * expected.abs().max().item())
