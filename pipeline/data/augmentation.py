"""Random changes to a batch of training images: uint8 in, uint8 out, all samples at once on the batch's device.

The draws are made on the CPU from (seed, step), so that every device, and a resumed run, sees the same images.
"""

import torch
from torch.nn import functional as F

from pipeline.config.sections import Augment
from pipeline.data.seeding import generator_for


def augmented(images: torch.Tensor, options: Augment, seed: int, step: int) -> torch.Tensor:
    """Crop each image at its own place, then mirror some. Switching one off leaves the draws of the other."""
    num, padding = len(images), options.crop_padding
    if padding:
        images = _cropped(images, padding, _draws(num, 2, 2 * padding + 1, generator_for(seed, "crop", step)).to(images.device))
    if options.flip:
        images = _flipped(images, _draws(num, 1, 2, generator_for(seed, "flip", step)).to(images.device))
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
