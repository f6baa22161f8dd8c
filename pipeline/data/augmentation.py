"""Random changes to a batch of training images: uint8 in, uint8 out, all samples at once on the batch's device.

The draws are made on the CPU from (seed, step), so that every device, and a resumed run, sees the same images.
"""

import torch
from torch.nn import functional as F

from pipeline.config.sections import Augment
from pipeline.data.seeding import generator_for


def augmented(images: torch.Tensor, options: Augment, seed: int, step: int) -> torch.Tensor:
    """Crop each image at its own place, mirror some, turn each by its own angle. Switching one off leaves the draws of the others."""
    num, padding = len(images), options.crop_padding
    if padding:
        images = _cropped(images, padding, _draws(num, 2, 2 * padding + 1, generator_for(seed, "crop", step)).to(images.device))
    if options.flip:
        images = _flipped(images, _draws(num, 1, 2, generator_for(seed, "flip", step)).to(images.device))
    if options.rotation:
        share = torch.rand(num, dtype=torch.float64, generator=generator_for(seed, "rotation", step))
        images = _rotated(images, torch.deg2rad(options.rotation * (2 * share - 1)))
    return images


def _draws(num: int, per_image: int, below: int, generator: torch.Generator) -> torch.Tensor:
    return torch.randint(0, below, (num, per_image), generator=generator)


def _cropped(images: torch.Tensor, padding: int, corners: torch.Tensor) -> torch.Tensor:
    height, width = images.shape[2:]
    windows = F.pad(images, (padding,) * 4).unfold(2, height, 1).unfold(3, width, 1)
    samples = torch.arange(len(images), device=images.device)
    return windows[samples, :, corners[:, 0], corners[:, 1]]


def _flipped(images: torch.Tensor, mirror: torch.Tensor) -> torch.Tensor:
    return torch.where(mirror.bool()[:, :, None, None], images.flip(3), images)


def _rotated(images: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    """Each pixel is the one nearest to where it comes from, black where that lies outside. Counter-clockwise in radians, about the centre.

    In float64, by products and sums that every device rounds alike.
    """
    height, width = images.shape[2:]
    cosine, sine = (turn.to(images.device)[:, None, None] for turn in (angles.cos(), angles.sin()))
    down = torch.arange(height, dtype=torch.float64, device=images.device)[:, None] - (height - 1) / 2
    right = torch.arange(width, dtype=torch.float64, device=images.device) - (width - 1) / 2
    row = (cosine * down + sine * right + (height - 1) / 2).round().long()
    column = (cosine * right - sine * down + (width - 1) / 2).round().long()
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    source = torch.where(inside, row * width + column, 0).flatten(1)[:, None].expand(-1, images.shape[1], -1)
    return torch.where(inside[:, None], images.flatten(2).gather(2, source).view_as(images), 0)
