"""Convolutions written so that the kernels of every runtime get them right: the same sums, in a shape that avoids what some get wrong.

Takes a convolution's integers and sizes. docs/exact.md says which kernels get which shapes wrong.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Pair = tuple[int, int]


@dataclass(frozen=True)
class Convolution:
    """Weights as filters x channels of a group x height x width, and how they move over an image."""

    weights: Array
    groups: int
    strides: Pair
    dilations: Pair
    pads: tuple[int, int, int, int]
    """Above, to the left, below, to the right."""

    @property
    def channels(self) -> int:
        """Of a group."""
        return int(self.weights.shape[1])

    @property
    def kernel(self) -> Pair:
        return self.weights.shape[2], self.weights.shape[3]

    @property
    def is_depthwise(self) -> bool:
        return 1 < self.groups == len(self.weights) and self.channels == 1

    @property
    def attributes(self) -> dict[str, object]:
        return {"strides": self.strides, "pads": self.pads, "dilations": self.dilations, "group": self.groups}


def sees_only_padding(convolution: Convolution, image: Pair) -> bool:
    """Whether some row or column of windows has no pixel of the image in it."""
    return any(_is_blind(convolution, axis, image[axis]) for axis in (0, 1))


def _is_blind(convolution: Convolution, axis: int, size: int) -> bool:
    before, after, kernel = convolution.pads[axis], convolution.pads[axis + 2], convolution.kernel[axis]
    taps = convolution.dilations[axis] * np.arange(kernel) - before
    starts = np.arange(0, size + before + after - (taps[-1] - taps[0]), convolution.strides[axis])
    places = starts[:, None] + taps
    return not bool(np.any((places >= 0) & (places < size), axis=1).all())


def without_padding(convolution: Convolution) -> Convolution:
    """For an image that was padded before."""
    return replace(convolution, pads=(0, 0, 0, 0))


def with_second_channel(convolution: Convolution) -> Convolution:
    """For an image of one channel that was given another: it counts for nothing."""
    return replace(convolution, weights=np.concatenate([convolution.weights, np.zeros_like(convolution.weights)], axis=1))


def with_groups_of_four(convolution: Convolution) -> Convolution:
    """So many groups in one that channels and filters of each come in fours, or that there is one."""
    while convolution.groups > 1 and (convolution.channels % 4 or len(convolution.weights) // convolution.groups % 4):
        convolution = _with_merged_groups(convolution)
    return convolution


def _with_merged_groups(convolution: Convolution) -> Convolution:
    """As few groups in one as can be, with weights of 0 for what was another group's."""
    weights, channels, groups = convolution.weights, convolution.channels, convolution.groups
    number = next(each for each in range(2, groups + 1) if groups % each == 0)
    place = np.arange(len(weights)) // (len(weights) // groups) % number
    merged = np.zeros((len(weights), number * channels, *convolution.kernel), weights.dtype)
    for each in range(number):
        merged[place == each, each * channels : (each + 1) * channels] = weights[place == each]
    return replace(convolution, weights=merged, groups=groups // number)


def with_wider_kernel(convolution: Convolution) -> Convolution:
    """One column more, of weights of 0, over padding of its own."""
    above, left, below, right = convolution.pads
    weights = np.concatenate([convolution.weights, np.zeros_like(convolution.weights[..., :1])], axis=3)
    return replace(convolution, weights=weights, pads=(above, left, below, right + convolution.dilations[1]))
