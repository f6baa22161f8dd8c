"""The certificate on the training side: how large any partial sum of a layer can become, in units of its integers.

Takes layers on the grid. The same bound is computed again from the exported file alone, by code that shares nothing with this
(`deploy.verify.certificate`).
"""

import torch

from export.exact.rewrite import GridLayer

LARGEST_SUM = 2**24 - 1
"""Every integer up to here is a float32; so are all sums of a subset of the terms, in whichever order they are added."""


WIDEST_STEP = 2**16
"""A quantiser's step in units of the sums it rounds: OpenVINO adds its zero point first, and 8 bits of the result beside these are a float32's 24."""


@torch.no_grad()
def largest_sums(layer: GridLayer) -> torch.Tensor:
    """Per filter, the largest absolute value of a sum over any subset of its terms, bias included; in float64, where it is exact."""
    weights, bias = (each.double() for each in layer.weights.integers())
    weights = weights.flatten(1)
    positive, negative = weights.clamp_min(0).sum(1), -weights.clamp_max(0).sum(1)
    terms = positive + negative if layer.signed_input else torch.maximum(positive, negative)
    return (terms * layer.largest_input + bias.abs()) * layer.positions
