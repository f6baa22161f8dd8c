"""The outputs that a bundle was validated with, and whether others are what they should be.

Takes an opened bundle and arrays. On the grid the bits must be equal; in float the error against
float64 must be within the budget. Knows no runtime.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import safetensors.numpy

from deploy.compare.bits import Array, ordered_bits
from deploy.compare.budget import Budgets, ErrorMeter, budgets
from deploy.compare.samples import hostile_images
from deploy.runners.runner import Precision
from export.bundle import OUTPUTS, SAMPLES, Bundle
from export.errors import DamagedError

Form = Literal["exact", "float32"]
MOST_SAMPLES = 256
SAMPLE, EXACT, FLOAT32, FLOAT64 = "sample", "exact", "float32", "float64"
"""The tensors of the file: which stored images were run, and what the forms gave for these and for
the hostile images behind them."""


def chosen_samples(number: int) -> Array:
    """Which stored images are run: as many as are allowed, evenly spread."""
    kept = min(number, MOST_SAMPLES)
    return np.arange(kept, dtype=np.int64) * number // max(kept, 1)


def images_of(stored: Array, chosen: Array) -> Array:
    """The images that are run: the chosen ones, then the hostile ones."""
    channels, height, width = stored.shape[1:]
    return np.concatenate([stored[chosen], hostile_images((channels, height, width)).images])


@dataclass(frozen=True)
class ValidatedOutputs:
    """Images, and what was validated for them."""

    images: Array
    float32: Array
    float64: Array
    exact: Array | None
    output: str

    def difference(self, form: Form, values: Array) -> str | None:
        """Say how outputs differ from what they must be; None if they do not."""
        if values.shape != self.float32.shape or values.dtype != np.float32:
            return f"{values.dtype.name} of shape {values.shape}, expected float32 of shape {self.float32.shape}"
        return self._of_bits(values) if form == "exact" else self._of_errors(values)

    def budgets(self, precision: Precision = "float32") -> Budgets:
        """How far from float64 outputs of a precision may be."""
        return budgets(self._errors(self.float32).measured, "float32", precision)

    def _of_bits(self, values: Array) -> str | None:
        if self.exact is None:
            return "there is no exact form to compare with"
        apart = np.flatnonzero((ordered_bits(values) != ordered_bits(self.exact)).any(axis=1))
        if not apart.size:
            return None
        row = int(apart[0])
        column = int(np.flatnonzero(ordered_bits(values)[row] != ordered_bits(self.exact)[row])[0])
        found, expected = float(values[row, column]), float(self.exact[row, column])
        return f"{apart.size} of {len(values)} samples have other bits, first sample {row}, value {column}: {found!r}, expected {expected!r}"

    def _of_errors(self, values: Array) -> str | None:
        measured, allowed = self._errors(values).measured, self.budgets()
        if allowed.covers(measured):
            return None
        return f"the error against float64 is {measured.whole}, the budget is {allowed.outputs[self.output]}"

    def _errors(self, values: Array) -> ErrorMeter:
        meter = ErrorMeter()
        meter.update({self.output: self.float64}, {self.output: values})
        return meter


def validated_outputs(bundle: Bundle) -> ValidatedOutputs:
    """Read them from a bundle; what does not fit together is a DamagedError."""
    stored, outputs = _tensors(bundle, SAMPLES), _tensors(bundle, OUTPUTS)
    images, chosen = stored.get("images"), outputs.get(SAMPLE)
    shape = tuple(size or 0 for size in bundle.manifest.input.shape[1:])
    if images is None or chosen is None or images.dtype != np.uint8 or images.shape[1:] != shape or len(shape) != 3:
        raise _damaged(bundle, f"its samples are not images of {shape}")
    if not np.array_equal(chosen, chosen_samples(len(images))):
        raise _damaged(bundle, "it was not made from these samples")
    run = images_of(images, chosen)
    expected = (len(run), *(size or 0 for size in bundle.manifest.output.shape[1:]))
    for name, dtype in ((FLOAT32, np.float32), (FLOAT64, np.float64), (EXACT, np.float32)):
        found = outputs.get(name)
        if found is None and name == EXACT:
            continue
        if found is None or found.dtype != dtype or found.shape != expected:
            raise _damaged(bundle, f"{name} is not {np.dtype(dtype).name} of shape {expected}")
    return ValidatedOutputs(run, outputs[FLOAT32], outputs[FLOAT64], outputs.get(EXACT), bundle.manifest.output.name)


def _tensors(bundle: Bundle, name: str) -> Mapping[str, Array]:
    try:
        return safetensors.numpy.load(bundle.read(name))
    except safetensors.SafetensorError as error:
        raise DamagedError(f"{bundle.folder / name} is not a safetensors file: {error}; export the bundle again") from error


def _damaged(bundle: Bundle, what: str) -> DamagedError:
    return DamagedError(f"{bundle.folder / OUTPUTS}: {what}; export the bundle again")
