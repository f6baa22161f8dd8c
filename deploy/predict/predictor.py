"""Decodes image files by the recipe of a bundle, runs a model on them, and ranks the classes.

Takes a source of logits: a runtime here, a server (`remote.py`), or a server's own sessions. Needs
no torch.
"""

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from deploy.runners.runtimes import RUNTIMES, open_file
from export.bundle import EXACT_MODEL, EXACT_TENSORRT_MODEL, MODEL, Bundle, Facts
from export.errors import DamagedError, UsageError
from export.preprocess import ImageError, Pixels, pixels_of, sha256_of_pixels

PredictForm = Literal["exact", "float32"]
Logits = NDArray[np.float32]
"""N x number of classes."""
DEFAULT_RUNTIME = "onnxruntime-cpu"


@dataclass(frozen=True)
class LogitSource:
    """What answers: a function from N x C x H x W pixels to logits, and what it is."""

    logits: Callable[[Pixels], Logits]
    facts: Mapping[str, str]
    batch: int
    """How many images to give it at once."""


@dataclass(frozen=True)
class RankedClass:
    """A class and what the model says of it."""

    name: str
    index: int
    logit: float
    probability: float
    """The softmax of the logits, computed in float64."""


@dataclass(frozen=True)
class Prediction:
    """The classes for an image, best first."""

    classes: tuple[RankedClass, ...]
    sha256_of_pixels: str


class Predictor:
    """Answers images with ranked classes."""

    def __init__(self, facts: Facts, source: LogitSource) -> None:
        self.source = source
        self._recipe, self._classes = facts.recipe, facts.classes

    def predict(self, image: bytes | str) -> Prediction:
        """Return the classes for an image file, given as its bytes or its path.

        Raises ImageError if the file cannot be used.
        """
        found = next(self.predict_each([image]))
        if isinstance(found, ImageError):
            raise found
        return found

    def predict_each(self, images: Iterable[bytes | str]) -> Iterator[Prediction | ImageError]:
        """Yield the prediction for each image, or why it cannot be used, in order."""
        left = iter(images)
        while some := list(islice(left, self.source.batch)):
            decoded = [self._decoded(image) for image in some]
            usable = [pixels for pixels in decoded if not isinstance(pixels, ImageError)]
            logits = iter(self._logits(np.stack(usable)) if usable else ())
            for pixels in decoded:
                yield pixels if isinstance(pixels, ImageError) else Prediction(self._ranked(next(logits)), sha256_of_pixels(pixels))

    def _decoded(self, image: bytes | str) -> Pixels | ImageError:
        try:
            return pixels_of(image, self._recipe)
        except ImageError as error:
            return error

    def _logits(self, pixels: Pixels) -> Logits:
        logits = self.source.logits(pixels)
        if logits.shape != (len(pixels), len(self._classes)) or not np.isfinite(logits).all():
            wanted = f"{len(pixels)} x {len(self._classes)} finite numbers"
            raise DamagedError(f"the model gave {' x '.join(map(str, logits.shape))} outputs or no numbers, expected {wanted}; export it again")
        return logits

    def _ranked(self, logits: Logits) -> tuple[RankedClass, ...]:
        """Return all classes, best first; of equal ones the first of the model's order."""
        wide = logits.astype(np.float64)
        shares = np.exp(wide - wide.max())
        shares /= shares.sum()
        order = np.argsort(-wide, kind="stable")
        return tuple(RankedClass(self._classes[index], int(index), float(logits[index]), float(shares[index])) for index in order)


@contextmanager
def opened_here(bundle: Bundle, runtime: str = DEFAULT_RUNTIME, form: PredictForm | None = None) -> Iterator[LogitSource]:
    """Yield a runtime of this machine that has opened a model of the bundle.

    Without a form, take the exact file if there is one.
    """
    name = _model_name(bundle, runtime, form)
    facts = bundle.manifest
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(bundle.read(name))  # the bytes that were hashed are the bytes that are run
        with open_file(runtime, path) as runner:

            def logits(pixels: Pixels) -> Logits:
                return runner.run({facts.input.name: pixels})[facts.output.name]

            yield LogitSource(logits, {"model": name, "runtime": runtime}, batch=32)


def _model_name(bundle: Bundle, runtime: str, form: PredictForm | None) -> str:
    has_exact = bundle.has(EXACT_MODEL)
    if form == "exact" and not has_exact:
        raise UsageError(f"{bundle.folder} has no exact form, so --form exact is not possible; take --form float32, or export it with exact on")
    if form == "float32" or not has_exact:
        return MODEL
    return EXACT_TENSORRT_MODEL if runtime in RUNTIMES and RUNTIMES[runtime].reads == "signed file" else EXACT_MODEL
