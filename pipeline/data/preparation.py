"""Open a data set: read it, place its images, and choose its normalisation.

Takes the data options and a device; returns a `DataSet`. The normalisation `centred` is exact in
floating point: 128 and 64 leave every pixel a multiple of 1/64.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from importlib import import_module
from math import sqrt
from typing import cast

import torch

from export.errors import DamagedError, UsageError
from export.preprocess import CENTRE_SQUARE, UNCHANGED, WHOLE, Recipe, recipe_for
from pipeline.config.sections import DATA_SETS, Data
from pipeline.data.dataset import DataSet, LabelledImages, Normalisation, Progress, Source, Split, silent, too_large_a_batch
from pipeline.data.images import FileImages, Images, MemoryImages

_AT_ONCE = 1024
_NAMED = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
}
"""Means and deviations of p / 255 from papers or their code."""


def normalisation_for(options: Data, train: Split, progress: Progress) -> Normalisation:
    """Return the normalisation that the options request, on the scale of raw pixels."""
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
    """Compute it from counts of each pixel value.

    The sums are of integers, so they depend on no order, batch size or device.
    """
    counts = _counts(train, progress)
    values = range(256)
    moments = [[sum(n * v**power for n, v in zip(channel, values, strict=True)) for power in (0, 1, 2)] for channel in counts]
    means = tuple(total / n for n, total, _ in moments)
    stds = tuple(sqrt(n * squares - total * total) / n for n, total, squares in moments)
    if min(stds) == 0:
        raise UsageError("data.normalisation: dataset divides by 0: a channel has one value in all training images; use centred")
    return Normalisation(means, stds)


def _counts(train: Split, progress: Progress) -> list[list[int]]:
    counts = torch.zeros((train.images.shape[0], 256), dtype=torch.int64, device=train.device)
    num_batches = -(-train.num_samples // _AT_ONCE)
    for images, _ in progress(train.batches(_AT_ONCE), "measuring mean and deviation", num_batches):
        channels = images.transpose(0, 1).flatten(1)
        counts += torch.stack([torch.bincount(channel, minlength=256) for channel in channels])
    return [[int(n) for n in channel] for channel in counts.tolist()]


Reader = Callable[[Data, Progress], Source]
RESIDENT_BYTES = 2 * 2**30
"""Up to this decoded size, `residence: auto` keeps a whole set on the device."""
_DECODED_AT_ONCE = 256


def open_data(options: Data, device: torch.device, progress: Progress = silent) -> DataSet:
    """Open the data set that the options name, with batches on `device`."""
    source = _reader(options.name)(options, progress)
    _require_usable(source, options)
    placing = _Placement(device, _is_resident(source, options), progress)
    train, test = placing.placed(source.train, "training"), placing.placed(source.test, "test")
    channels, height, width = train.images.shape
    return DataSet(
        name=options.name,
        classes=source.classes,
        channels=channels,
        height=height,
        width=width,
        normalisation=normalisation_for(options, train, progress),
        train=train,
        test=test,
        notes=(*source.notes, placing.note(source)),
        recipe=source.recipe or _recipe_of_pixels(train.images.shape),
        test_files=source.test.images.paths if isinstance(source.test.images, FileImages) else (),
    )


def _recipe_of_pixels(shape: tuple[int, int, int]) -> Recipe:
    """Return the recipe for files where a data set has pixels of its own.

    A file of the right size goes in as it is. One of another size is brought to it, where it is a
    square.
    """
    _, height, width = shape
    return replace(recipe_for(shape, framing=CENTRE_SQUARE if height == width else WHOLE), trained_on=UNCHANGED)


def _reader(name: str) -> Reader:
    module, _, function = DATA_SETS[name].partition(":")
    return cast("Reader", getattr(import_module(module), function))


@dataclass(frozen=True)
class _Placement:
    """Where the images of a data set are kept."""

    device: torch.device
    resident: bool
    progress: Progress

    def placed(self, found: LabelledImages, which: str) -> Split:
        images = self._resident(found.images, which) if self.resident else found.images
        labels = found.labels.to(self.device) if self.resident else found.labels
        return Split(images, labels, self.device)

    def note(self, source: Source) -> str:
        num, size = (
            source.train.images.num_images + source.test.images.num_images,
            f"{_num_bytes(source) / 2**20:,.1f} MiB",
        )
        how = "kept as bytes on" if self.resident else "sent batch by batch to"
        return f"{num:,} images of {size}, {how} {self.device}"

    def _resident(self, images: Images, which: str) -> Images:
        pixels = self._empty(images)
        start = 0
        for batch in self._read(images, which):
            pixels[start : start + len(batch)] = batch
            start += len(batch)
        return MemoryImages(pixels)

    def _read(self, images: Images, which: str) -> Iterable[torch.Tensor]:
        in_order = torch.arange(images.num_images)
        if not isinstance(images, FileImages):
            return images.batches(in_order, _DECODED_AT_ONCE, self.device)
        batches = images.for_one_pass().batches(in_order, _DECODED_AT_ONCE, self.device)
        what = f"decoding {images.num_images:,} {which} images"
        return self.progress(batches, what, -(-images.num_images // _DECODED_AT_ONCE))

    def _empty(self, images: Images) -> torch.Tensor:
        try:
            return torch.empty((images.num_images, *images.shape), dtype=torch.uint8, device=self.device)
        except RuntimeError as error:  # torch's out-of-memory errors: one class of their own on CUDA, none on a CPU
            size = f"{images.num_bytes / 2**30:,.1f} GiB"
            raise UsageError(f"{size} of images do not fit on {self.device}; set data.residence: stream") from error


def _num_bytes(source: Source) -> int:
    return source.train.images.num_bytes + source.test.images.num_bytes


def _is_resident(source: Source, options: Data) -> bool:
    if options.augment.resized_crop is not None:  # each epoch needs the whole images again
        return False
    return options.residence == "device" or (options.residence == "auto" and _num_bytes(source) <= RESIDENT_BYTES)


def _require_usable(source: Source, options: Data) -> None:
    _, height, width = source.train.images.shape
    if len(source.classes) < 2:
        raise UsageError(f"{options.name} has one class, {source.classes[0]}; add at least a second")
    if options.batch_size > source.train.images.num_images:
        raise too_large_a_batch(options.batch_size, source.train.images.num_images)
    _require_room(options.augment.crop_padding, height, width)
    _require_labels_in_range(source.train.labels, len(source.classes), "training")
    _require_labels_in_range(source.test.labels, len(source.classes), "test")


def _require_room(padding: int, height: int, width: int) -> None:
    least = min(height, width)
    if padding >= least:
        what = f"data.augment.crop_padding {padding} could leave nothing of {width}x{height} images"
        raise UsageError(f"{what}; set it to less than {least}")


def _require_labels_in_range(labels: torch.Tensor, num_classes: int, which: str) -> None:
    outside = ((labels < 0) | (labels >= num_classes)).nonzero().flatten().tolist()
    if outside:
        what = f"{which} image {outside[0]} has label {int(labels[outside[0]])}, expected 0 to {num_classes - 1}"
        raise DamagedError(f"{what} ({len(outside)} such labels); fetch the data set again")
