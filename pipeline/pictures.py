"""Samples as pictures for the report. What is no image of bytes has none.

Takes rows of inputs; returns PNG files.
"""

import io
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_MOST_PIXELS = 512 * 512


def pictures_of(rows: Mapping[int, Mapping[str, NDArray[np.generic]]]) -> dict[int, bytes]:
    """A picture of each sample that is an image: one input of bytes, 1 or 3 channels first."""
    found = {}
    for sample, inputs in rows.items():
        picture = _picture(next(iter(inputs.values()))) if len(inputs) == 1 else None
        if picture is not None:
            found[sample] = picture
    return found


def _picture(image: NDArray[np.generic]) -> bytes | None:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[0] not in (1, 3) or image[0].size > _MOST_PIXELS:
        return None
    pixels = np.ascontiguousarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0))
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()
