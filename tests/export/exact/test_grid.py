import math

import numpy as np
import pytest
import torch
from torch import nn

from export.exact.grid import (
    SIGNED,
    UNSIGNED,
    BorrowedWeights,
    GridWeights,
    MeanWeights,
    Pixels,
    PixelWeights,
    PooledSum,
    Quantise,
    ScaledDerivation,
    even,
    odd,
    off_grid,
)
from export.graph.layers import PlainDerivation


def draws(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_weights_are_the_nearest_even_multiples_within_the_limit() -> None:
    weight, step, limit = draws(5, 7, 3, 3), 2.0 ** torch.arange(-8.0, -3.0), torch.full((5, 1, 1, 1), 62.0)
    found = even(weight, step, limit).numpy().astype(np.float64)
    steps = step.numpy().astype(np.float64).reshape(-1, 1, 1, 1)
    multiples = np.arange(-62, 63, 2)
    distances = np.abs(weight.numpy().astype(np.float64)[..., None] - steps[..., None] * multiples)
    assert np.array_equal(np.abs(found - weight.numpy()), distances.min(-1))
    assert set(np.unique(found / steps).astype(int)) <= set(multiples)


def test_biases_are_the_nearest_odd_multiples() -> None:
    bias, unit = draws(200), torch.full((200,), 2.0**-6)
    found = odd(bias, unit).numpy() * 2**6
    assert np.array_equal(found % 2, np.ones(200))
    assert np.abs(found / 2**6 - bias.numpy()).max() <= 2**-6


def test_gradients_pass_straight_through_the_weights() -> None:
    derivation = GridWeights(PlainDerivation(draws(4, 3, 3, 3), draws(4, seed=1)), 126)
    derivation.step.fill_(2.0**-5)
    weight, bias = derivation()
    assert bias is not None
    inner = derivation.inner
    assert isinstance(inner, PlainDerivation)
    assert inner.bias is not None
    of_weight, of_bias = torch.autograd.grad(weight.sum() * 2 + bias.sum() * 3, (inner.weight, inner.bias))
    assert torch.equal(of_weight, torch.full((4, 3, 3, 3), 2.0))
    assert torch.equal(of_bias, torch.full((4,), 3.0))


@pytest.mark.parametrize("limits", [SIGNED, UNSIGNED])
def test_a_quantiser_rounds_half_to_even_and_clips(limits: tuple[int, int]) -> None:
    quantiser = Quantise(limits)
    quantiser.step.fill_(0.25)
    x = torch.linspace(-40, 40, 10001)
    expected = np.clip(np.rint(x.numpy().astype(np.float64) / 0.25), *limits) * 0.25
    assert np.array_equal(quantiser(x).numpy(), expected.astype(np.float32))


def test_a_quantiser_gives_no_negative_zero() -> None:
    quantiser = Quantise(SIGNED)
    assert not torch.signbit(quantiser(torch.tensor([-0.3, -0.0, 0.2]))).any()
    assert not torch.signbit(even(torch.full((1, 1), -0.2), torch.ones(1), torch.full((1, 1), 126.0))).any()


def test_gradients_pass_a_quantiser_where_nothing_is_clipped() -> None:
    quantiser = Quantise(UNSIGNED)
    x = torch.tensor([-2.0, -0.6, -0.4, 0.0, 3.3, 127.4, 127.6, 500.0], requires_grad=True)
    quantiser(x).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [0, 0, 1, 1, 1, 1, 0, 0]


def test_a_ceiling_is_the_largest_multiple_below_it() -> None:
    quantiser = Quantise(UNSIGNED, 6.0)
    quantiser.step.fill_(2.0**-3)
    assert quantiser.high == 48
    assert quantiser(torch.tensor([5.9, 6.5, 100.0])).tolist() == [5.875, 6.0, 6.0]
    quantiser.step.fill_(2.0**-5)
    assert quantiser.high == 127
    assert math.isinf(Quantise(UNSIGNED).ceiling)


@pytest.mark.parametrize("offset", [0, 100, 128])
def test_every_byte_is_exact_on_the_grid(offset: int) -> None:
    every = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    found = Pixels(offset, 2.0**-6)(every)
    assert np.array_equal(found.numpy().ravel(), (np.arange(256) - offset) / 64)


def test_weights_for_pixels_are_the_same_function_inside_the_image() -> None:
    """Compared with the network's own normalisation, in float64, on an image without padding."""
    mean, deviation = torch.tensor([120.0, 110.0, 100.0]), torch.tensor([60.0, 70.0, 50.0])
    weight, bias = draws(4, 3, 3, 3).double(), draws(4, seed=1).double()
    pixels = Pixels(110, 2.0**-6)
    gain, shift = 1 / (deviation * pixels.step), (pixels.offset - mean) / deviation
    image = torch.randint(0, 256, (2, 3, 6, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    wanted = nn.functional.conv2d((image - mean.double().view(1, -1, 1, 1)) / deviation.double().view(1, -1, 1, 1), weight, bias)
    found = nn.functional.conv2d(pixels(image).double(), *PixelWeights(BorrowedWeights(weight, bias), gain.double(), shift.double())())
    assert (found - wanted).abs().max() < 1e-6


def test_a_mean_is_a_depthwise_convolution_and_a_pooled_sum_a_sum() -> None:
    x = draws(2, 5, 6, 6).double()
    weight, bias = MeanWeights(5, (3, 3)).double()()
    assert bias is None
    assert torch.allclose(nn.functional.conv2d(x, weight, stride=3, groups=5), nn.functional.avg_pool2d(x, 3), rtol=0, atol=1e-7)
    assert torch.allclose(PooledSum(0.25)(x), x.sum((2, 3), keepdim=True) / 4, rtol=1e-14, atol=0)


def test_a_constant_factor_reaches_the_bias_where_it_should() -> None:
    held = BorrowedWeights(draws(2, 3), draws(2, seed=1))
    for on_bias in (False, True):
        weight, bias = ScaledDerivation(held, 0.3, on_bias=on_bias)()
        assert torch.equal(weight, held.weight * 0.3)
        assert held.bias is not None
        assert torch.equal(bias, held.bias * 0.3 if on_bias else held.bias)


def test_off_the_grid_nothing_is_rounded() -> None:
    quantiser, x = Quantise(UNSIGNED), draws(100)
    with off_grid(quantiser):
        assert torch.equal(quantiser(x), x.clamp_min(0))
    assert not torch.equal(quantiser(x), x.clamp_min(0))
