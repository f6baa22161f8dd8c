"""What is subtracted from and divided into the raw pixels of a data set, one number each per channel.

`centred` is exact in floating point: 128 and 64 leave every pixel a multiple of 1/64.
"""

from math import sqrt

import torch

from export.errors import UsageError
from pipeline.config.sections import Data
from pipeline.data.dataset import Normalisation, Progress, Split

_AT_ONCE = 1024
_NAMED = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
}
"""Means and deviations of p / 255 that papers or their code give."""


def normalisation_for(options: Data, train: Split, progress: Progress) -> Normalisation:
    """The normalisation that the options ask for, on the scale of raw pixels."""
    channels = train.images.shape[0]
    if options.normalisation == "centred":
        return Normalisation((128.0,) * channels, (64.0,) * channels)
    if options.normalisation == "unit":
        return Normalisation((0.0,) * channels, (255.0,) * channels)
    if options.normalisation == "dataset":
        return _measured(train, progress)
    mean, std = _NAMED[options.normalisation] if isinstance(options.normalisation, str) else options.normalisation
    if len(mean) != channels:
        raise UsageError(f"data.normalisation has {len(mean)} means, the images have {channels} channels; give one mean and one deviation for each")
    return Normalisation(tuple(255 * value for value in mean), tuple(255 * value for value in std))


def _measured(train: Split, progress: Progress) -> Normalisation:
    """From counts of each pixel value: the sums are of integers and depend on no order, batch size or device."""
    counts = _counts(train, progress)
    values = range(256)
    moments = [[sum(n * v**power for n, v in zip(channel, values, strict=True)) for power in (0, 1, 2)] for channel in counts]
    means = tuple(total / n for n, total, _ in moments)
    stds = tuple(sqrt(n * squares - total * total) / n for n, total, squares in moments)
    if min(stds) == 0:
        raise UsageError("data.normalisation: dataset divides by 0: a channel has one value in all training images; take centred")
    return Normalisation(means, stds)


def _counts(train: Split, progress: Progress) -> list[list[int]]:
    counts = torch.zeros((train.images.shape[0], 256), dtype=torch.int64, device=train.device)
    num_batches = -(-train.num_samples // _AT_ONCE)
    for images, _ in progress(train.batches(_AT_ONCE), "measuring mean and deviation", num_batches):
        channels = images.transpose(0, 1).flatten(1)
        counts += torch.stack([torch.bincount(channel, minlength=256) for channel in channels])
    return [[int(n) for n in channel] for channel in counts.tolist()]
