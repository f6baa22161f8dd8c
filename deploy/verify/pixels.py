"""The link from image files to pixels: files are decoded again, and their hashes compared.

Takes the files, their stored hashes and the recipe. Finds a Pillow that decodes or scales
differently from the one that a network was trained with.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import PIL

from deploy.verify.environment import environment
from deploy.verify.links import Record
from deploy.verify.verdict import LinkVerdict, Samples, Verdict
from export.files import sha256_of
from export.preprocess import ImageError, Recipe, pixels_of, sha256_of_pixels

IMAGE_FILE, PIXELS = "image file", "pixels"
_NAME = f"{IMAGE_FILE} -> {PIXELS}"


@dataclass(frozen=True)
class StoredImages:
    """Image files, the SHA-256 of the pixels of each, and the Pillow that made those."""

    files: Mapping[str, bytes]
    hashes: Mapping[str, str]
    recipe: Recipe
    pillow: str


def is_only_the_pixels(only: str | None) -> bool:
    """Whether this selection of a link means this one."""
    return only is not None and only.lower() in _NAME and (IMAGE_FILE in only.lower() or PIXELS in only.lower())


def pixels_link(stored: StoredImages) -> LinkVerdict:
    """Decode every file again and judge the link."""
    differences = list(_differences(stored))
    same, number = not differences, len(stored.files)
    reason = f"required bitwise, but {len(differences)} of {number} image files differ: {differences[0]}; {_pillows(stored)}" if differences else ""
    return LinkVerdict(
        from_=IMAGE_FILE,
        to=PIXELS,
        runtime="Pillow",
        device="cpu",
        required="bitwise",
        observed="bitwise" if same else "outside",
        status="passed" if same else "failed",
        reason=reason,
        samples=number,
        outputs=(),
        max_ulp=0 if same else None,
        max_abs=0.0 if same else None,
        budget=None,
        tolerance=None,
        top1_changes=0,
        ties=0,
        changes=(),
        first_difference=None,
        worst=(),
        place=None,
        growth=(),
    )


def _differences(stored: StoredImages) -> Iterator[str]:
    for name, content in stored.files.items():
        try:
            found = sha256_of_pixels(pixels_of(content, stored.recipe))
        except ImageError as error:
            yield f"{name} cannot be used: {error}"
            continue
        if found != stored.hashes[name]:
            yield f"{name} gives other pixels, sha256 {found[:16]}... instead of {stored.hashes[name][:16]}..."


def _pillows(stored: StoredImages) -> str:
    return f"Pillow is {PIL.__version__} here, and was {stored.pillow} when the hashes were made"


def verdict_on_pixels(stored: StoredImages, record: Record) -> Verdict:
    """The verdict where this link alone was selected."""
    digests = "".join(f"{stored.hashes[name]}\n" for name in stored.files)
    return Verdict(
        links=(pixels_link(stored),),
        errors=(),
        invariance=(),
        environment=environment(),
        stages={},
        files=dict(record.files),
        samples=Samples(sha256=sha256_of(digests.encode()), count=len(stored.files), how=("image files stored in the bundle",)),
        training_only=record.training_only,
        not_foldable=record.not_foldable,
        frozen_statistics=record.frozen_statistics,
    )
