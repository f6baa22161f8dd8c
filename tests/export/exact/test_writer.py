"""Each rewritten convolution gives the same sums in float64, and has the shape it is made for."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from export.exact.writer import Convolution, sees_only_padding, with_groups_of_four, with_second_channel, with_wider_kernel, without_padding

IMAGE = (7, 6)


def convolution(filters: int, channels: int, groups: int, kernel: tuple[int, int] = (3, 1)) -> Convolution:
    weights = np.random.default_rng(0).integers(-63, 64, (filters, channels, *kernel)).astype(np.float32)
    return Convolution(weights, groups, (2, 1), (1, 2), (1, 2, 1, 2))


def sums(form: Convolution, image: torch.Tensor) -> torch.Tensor:
    above, left, below, right = form.pads
    padded, weights = F.pad(image, (left, right, above, below)), torch.tensor(form.weights, dtype=torch.float64)
    return F.conv2d(padded, weights, None, form.strides, 0, form.dilations, form.groups)


def an_image(channels: int) -> torch.Tensor:
    return torch.tensor(np.random.default_rng(1).integers(-128, 128, (2, channels, *IMAGE)), dtype=torch.float64)


@pytest.mark.parametrize(
    ("filters", "channels", "groups", "left"), [(16, 4, 4, 4), (6, 3, 2, 1), (8, 1, 8, 2), (48, 4, 8, 4), (12, 2, 6, 3), (18, 1, 9, 1), (7, 3, 1, 1)]
)
def test_groups_come_in_fours(filters: int, channels: int, groups: int, left: int) -> None:
    before, image = convolution(filters, channels, groups), an_image(channels * groups)
    after = with_groups_of_four(before)
    assert after.groups == left
    assert torch.equal(sums(after, image), sums(before, image))


def test_a_second_channel_counts_for_nothing() -> None:
    before, image = convolution(5, 1, 1), an_image(1)
    assert torch.equal(sums(with_second_channel(before), image.repeat(1, 2, 1, 1)), sums(before, image))


@pytest.mark.parametrize("kernel", [(3, 1), (2, 2)])
def test_a_wider_kernel_gives_the_same_sums(kernel: tuple[int, int]) -> None:
    before, image = convolution(4, 2, 2, kernel), an_image(4)
    after = with_wider_kernel(before)
    assert after.kernel == (kernel[0], kernel[1] + 1)
    assert torch.equal(sums(after, image), sums(before, image))


def test_padding_may_come_before() -> None:
    before, image = convolution(4, 2, 2), an_image(4)
    assert torch.equal(sums(without_padding(before), F.pad(image, (2, 2, 1, 1))), sums(before, image))


@pytest.mark.parametrize(
    ("kernel", "stride", "dilation", "padding", "size", "blind"),
    [
        (3, 1, 1, 1, 5, False),
        (3, 1, 1, 2, 5, False),
        (3, 1, 1, 3, 5, True),
        (1, 2, 1, 1, 5, True),  # its first window is on the padding, and so is its last
        (1, 1, 1, 0, 5, False),
        (2, 1, 2, 1, 1, True),  # the pixel is between its two taps
        (3, 1, 2, 2, 1, False),
        (2, 3, 1, 2, 1, True),
        (5, 1, 1, 4, 1, False),
    ],
)
@pytest.mark.parametrize("axis", [0, 1])
def test_a_window_on_padding_alone_is_seen(kernel: int, stride: int, dilation: int, padding: int, size: int, blind: bool, axis: int) -> None:
    def on(value: int, other: int) -> tuple[int, int]:
        return (value, other) if axis == 0 else (other, value)

    weights, pads = np.ones((1, 1, *on(kernel, 1))), on(padding, 0) * 2
    form = Convolution(weights, 1, on(stride, 1), on(dilation, 1), pads)
    assert sees_only_padding(form, on(size, 3)) == blind
    counted = F.conv2d(
        F.pad(torch.ones(1, 1, *on(size, 3)), (pads[1], pads[3], pads[0], pads[2])), torch.tensor(weights).float(), None, *_moves(form)
    )
    assert bool((counted == 0).any()) == blind


def _moves(form: Convolution) -> tuple[tuple[int, int], int, tuple[int, int]]:
    return form.strides, 0, form.dilations


@pytest.mark.parametrize(("filters", "channels", "groups", "depthwise"), [(4, 1, 4, True), (8, 1, 4, False), (1, 1, 1, False), (4, 2, 2, False)])
def test_depthwise_is_one_filter_a_channel(filters: int, channels: int, groups: int, depthwise: bool) -> None:
    assert convolution(filters, channels, groups).is_depthwise == depthwise
