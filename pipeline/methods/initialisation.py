"""Initial weights, each a plain function of a shape, drawn in float32 from a given generator."""

import math

import torch


def unit_uniform(shape: torch.Size, generator: torch.Generator, mean_dims: tuple[int, ...] = ()) -> torch.Tensor:
    """Uniform filters of L2 norm 1; their mean over `mean_dims` is taken out first, where any are given."""
    weight = torch.empty(shape).uniform_(-1.0, 1.0, generator=generator)
    if mean_dims:
        weight -= weight.mean(mean_dims, keepdim=True)
    return weight / per_filter(weight.flatten(1).norm(dim=1), weight)


def he_normal(shape: torch.Size, generator: torch.Generator) -> torch.Tensor:
    """Normal with variance 2 / fan_in, for a layer in front of a ReLU."""
    return torch.empty(shape).normal_(0.0, math.sqrt(2.0 / shape[1:].numel()), generator=generator)


def he_normal_fan_out(shape: torch.Size, generator: torch.Generator, groups: int = 1) -> torch.Tensor:
    """Normal with variance 2 / fan_out."""
    return torch.empty(shape).normal_(0.0, math.sqrt(2.0 * groups / (shape[0] * shape[2:].numel())), generator=generator)


def with_both_signs(weight: torch.Tensor, dims: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """Draw the signs anew wherever all values over `dims` have the same one; a single value has only one."""
    if math.prod(weight.shape[dim] for dim in dims) == 1:
        return weight
    while True:
        num_positive = (weight > 0).sum(dims, keepdim=True)
        alike = (num_positive == 0) | (num_positive == math.prod(weight.shape[dim] for dim in dims))
        if not alike.any():
            return weight
        signs = 2 * torch.randint(0, 2, weight.shape, generator=generator) - 1
        weight = torch.where(alike, weight.abs() * signs, weight)


def xavier_normal(shape: torch.Size, generator: torch.Generator) -> torch.Tensor:
    """Normal with variance 2 / (fan_in + fan_out)."""
    fan_in, fan_out = shape[1:].numel(), shape[0] * shape[2:].numel()
    return torch.empty(shape).normal_(0.0, math.sqrt(2.0 / (fan_in + fan_out)), generator=generator)


def per_filter(values: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """One value per output filter, shaped so that it broadcasts over the weight."""
    return values.view(-1, *([1] * (weight.dim() - 1)))
