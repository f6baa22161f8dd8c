from collections.abc import Callable

import pytest
import torch
from graphs import rewritten
from torch import nn
from torch.nn import functional as F

from pipeline.config.methods import CzmigOptions
from pipeline.methods.noise import Noise, NoisyReLU


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("per_element", [False, True])
def test_as_one_layer_it_has_the_bits_of_relu_and_noise_one_after_the_other(
    dtype: torch.dtype, memory_format: torch.memory_format, per_element: bool
) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, 16, 6, 5, generator=generator).to(dtype).contiguous(memory_format=memory_format)
    x[0, 0, 0, 0], x[0, 0, 0, 1] = 0.0, -0.0
    gradient = torch.randn(4, 16, 6, 5, generator=generator).to(dtype).contiguous(memory_format=memory_format)
    noise = Noise(0.3, per_element=per_element).train()
    results = []
    both: tuple[Callable[[torch.Tensor], torch.Tensor], ...] = (NoisyReLU(noise).train(), lambda value: noise(F.relu(value)))
    for layer in both:
        torch.manual_seed(1)
        leaf = x.clone().requires_grad_()
        result = layer(leaf)
        torch.autograd.backward(result, gradient)
        assert leaf.grad is not None
        results.append((result.detach(), leaf.grad))
    (one, one_gradient), (other, other_gradient) = results
    assert one.is_contiguous(memory_format=memory_format)
    assert torch.equal(one, other)
    assert torch.equal(one_gradient, other_gradient)
    assert one_gradient.abs().max() > 0


def test_it_folds_to_a_plain_relu_and_is_one_when_switched_off() -> None:
    layer = NoisyReLU(Noise(0.1, per_element=False)).train()
    layer.noise.active = False
    x = torch.randn(2, 3, 4, 4)
    assert torch.equal(layer(x), F.relu(x))
    assert isinstance(layer.folded(), nn.ReLU)


def test_a_factor_that_may_be_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="above 0"):
        NoisyReLU(Noise(1.0, per_element=False))


def layers(training: nn.Module) -> tuple[int, int]:
    modules = list(training.modules())
    return sum(isinstance(m, NoisyReLU) for m in modules), sum(isinstance(m, Noise) for m in modules)


def test_noise_joins_the_relu_in_front_where_it_is_its_only_reader() -> None:
    assert layers(rewritten("resnet20", (3, 32, 32), CzmigOptions(name="czmig")).graph) == (9, 9)
    on_the_branch = CzmigOptions(name="czmig", noise_on_shortcut=False)
    assert layers(rewritten("resnet20", (3, 32, 32), on_the_branch).graph) == (0, 9)
    full = CzmigOptions(name="czmig", noise=1.0)
    assert layers(rewritten("resnet20", (3, 32, 32), full).graph) == (0, 9)
    # After a maximum pool and after a linear bottleneck there is no ReLU to join.
    assert layers(rewritten("torchvision:resnet18", (3, 64, 64), CzmigOptions(name="czmig")).graph) == (7, 8)
    assert layers(rewritten("torchvision:mobilenet_v2", (3, 64, 64), CzmigOptions(name="czmig")).graph) == (0, 10)
