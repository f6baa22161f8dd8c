"""The format of a bundle: its file names, its manifest of hashes, and the checks on opening one.

Plain data and files; needs no torch. No listed file is used before its hash has been checked.
"""

import json
import math
import stat
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, PlainSerializer, PlainValidator, ValidationError

from export.errors import DamagedError, UsageError
from export.files import sha256_of, write_file
from export.preprocess import Recipe, recipe_of

MODEL, WEIGHTS, LABELS, CARD = "model.onnx", "weights.safetensors", "labels.txt", "README.md"
CONFIG, TRAINING_WEIGHTS, SAMPLES = "training/config.yaml", "training/weights.safetensors", "training/samples.safetensors"
OUTPUTS = "training/outputs.safetensors"
"""What the forms of the model give for some of the samples, to compare with wherever it runs."""
METRICS, DIAGNOSIS = "training/metrics.jsonl", "training/diagnosis.jsonl"
EXACT_MODEL, EXACT_TENSORRT_MODEL, EXACT_WEIGHTS = "model.exact.onnx", "model.exact.trt.onnx", "weights.exact.safetensors"
FLOAT16_MODEL = "model.float16.onnx"
CERTIFICATE = "certificate.json"
VERIFICATION, REPORT = "verification.json", "report.html"
EXACT_TRAINING_WEIGHTS, EXACT_METRICS = "training/exact.safetensors", "training/exact.metrics.jsonl"
EXACT_FILES = (EXACT_MODEL, EXACT_TENSORRT_MODEL, EXACT_WEIGHTS, EXACT_TRAINING_WEIGHTS)
"""The files of the exact form, which belong together."""
MODELS = (MODEL, FLOAT16_MODEL, EXACT_MODEL, EXACT_TENSORRT_MODEL)
PREPROCESS = "preprocess.py"
"""The source of `export/preprocess.py`, which follows the recipe. Our code never runs it."""
IMAGES, IMAGE_FOLDER = "training/images.json", "training/images"
"""A few image files, and by name the SHA-256 of the pixels that each gave."""
MANIFEST = "manifest.json"
FORMAT_VERSION: Literal[2] = 2
_OF_FILE_BROWSERS = (".DS_Store", "Thumbs.db", "desktop.ini")
_LARGEST_MANIFEST = 16 * 2**20
_LONGEST_NAME = 200


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class FileEntry(_Entry):
    """One file of the bundle."""

    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    size: Annotated[int, Field(ge=0)]


class TensorEntry(_Entry):
    """An input or output of the model; null stands for the batch."""

    name: str
    dtype: Literal["uint8", "float32"]
    shape: list[Annotated[int, Field(ge=1, le=2**20)] | None]


class Facts(_Entry):
    """What a bundle says about its model, besides the list of its files."""

    network: str
    method: str
    input: TensorEntry
    output: TensorEntry
    classes: list[str]
    recipe: Annotated[Recipe, PlainValidator(recipe_of), PlainSerializer(asdict)]
    """How an image file becomes the input."""
    versions: dict[str, str]
    device: Annotated[str, Field(pattern=r"^(cpu|cuda(:\d{1,3})?)$")]
    """Where the network was trained and folded."""
    training_precision: str
    """The precision of the training steps. Everything that is compared computes in float32."""
    metrics: dict[str, JsonValue]


class Manifest(Facts):
    """The content of manifest.json."""

    format_version: Literal[2]
    files: dict[str, FileEntry]


@dataclass(frozen=True)
class Bundle:
    """An opened bundle. When it was opened, every listed file existed and had its hash."""

    folder: Path
    manifest: Manifest

    def has(self, name: str) -> bool:
        """Whether the manifest lists a file of this name."""
        return name in self.manifest.files

    def read(self, name: str) -> bytes:
        """The content of a file. The hash is checked on the very bytes that are returned."""
        entry = self.manifest.files.get(name)
        if entry is None:
            raise DamagedError(f"{self.folder}: the manifest lists no {name}; export the bundle again")
        return _checked(self.folder, name, entry)

    @property
    def hashes(self) -> dict[str, str]:
        """The hash of every file, by name."""
        return {name: entry.sha256 for name, entry in self.manifest.files.items()}


def open_bundle(folder: Path) -> Bundle:
    """Open a bundle after checking every file in it against the manifest."""
    manifest = _manifest(folder)
    for name, entry in manifest.files.items():
        _checked(folder, name, entry)
    _refuse_unlisted(folder, manifest)
    return Bundle(folder, manifest)


def _refuse_unlisted(folder: Path, manifest: Manifest) -> None:
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_symlink() or not (path.is_dir() or _of_the_system(path))}
    if unlisted := sorted(found - set(manifest.files) - {MANIFEST}):
        raise DamagedError(f"{folder / unlisted[0]} is not listed in the manifest; remove it, or export the bundle again")


def _of_the_system(path: Path) -> bool:
    """Whether a file browser left this file. It is never read."""
    return path.name in _OF_FILE_BROWSERS and path.is_file()


def write_manifest(folder: Path, facts: Facts) -> Manifest:
    """List every file of the folder, with its hash, in a manifest. This comes last in a bundle."""
    names = sorted({path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file() and not _of_the_system(path)} - {MANIFEST})
    files = {name: _entry_of(folder / name) for name in names}
    manifest = Manifest(format_version=FORMAT_VERSION, files=files, **facts.model_dump())
    write_file(folder / MANIFEST, json_bytes(manifest.model_dump()))
    return manifest


def json_bytes(value: Mapping[str, JsonValue]) -> bytes:
    """JSON as all our files hold it: indented, UTF-8, no NaN.

    A file name that is not valid UTF-8 is escaped the way JSON escapes.
    """
    return (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode(errors="backslashreplace")


def _entry_of(path: Path) -> FileEntry:
    data = path.read_bytes()
    return FileEntry(sha256=sha256_of(data), size=len(data))


def _manifest(folder: Path) -> Manifest:
    path = folder / MANIFEST
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder; expected a bundle, as pipeline train-export leaves it in RUN/bundle")
    if not path.is_file():
        raise UsageError(f"{folder} has no {MANIFEST}, so it is not a bundle; name the folder RUN/bundle")
    if path.is_symlink():
        raise DamagedError(f"{path} is a link; a bundle holds plain files only; do not use this bundle")
    if path.stat().st_size > _LARGEST_MANIFEST:
        raise DamagedError(f"{path} is larger than {_LARGEST_MANIFEST} bytes; export the bundle again")
    try:
        manifest = Manifest.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the top"
        raise DamagedError(f"{path} is not a manifest of format {FORMAT_VERSION}: at {place}: {first['msg']}; export the bundle again") from error
    for name in manifest.files:
        _require_inside(folder, name)
    if not _is_finite(manifest.metrics):
        raise DamagedError(f"{path}: metrics hold a number that is not finite; export the bundle again")
    return manifest


def _is_finite(value: JsonValue) -> bool:
    match value:
        case float():
            return math.isfinite(value)
        case list():
            return all(map(_is_finite, value))
        case dict():
            return all(map(_is_finite, value.values()))
        case _:
            return True


def _require_inside(folder: Path, name: str) -> None:
    path = PurePosixPath(name)
    if (
        len(name) > _LONGEST_NAME
        or path.is_absolute()
        or ".." in path.parts
        or "\\" in name
        or "\0" in name
        or path.as_posix() != name
        or name in ("", ".", MANIFEST)
    ):
        raise DamagedError(f"{folder / MANIFEST} lists {name!r}, which is not a plain name inside the bundle; do not use this bundle")


def _checked(folder: Path, name: str, entry: FileEntry) -> bytes:
    path = folder
    for part in PurePosixPath(name).parts:
        path = path / part
        if path.is_symlink():
            raise DamagedError(f"{path} is a link; a bundle holds plain files only; do not use this bundle")
    try:
        mode, size = path.stat().st_mode, path.stat().st_size
    except OSError as error:
        raise DamagedError(f"{path} is listed in the manifest but not there; export the bundle again") from error
    if not stat.S_ISREG(mode):
        raise DamagedError(f"{path} is not a plain file; do not use this bundle")
    if size != entry.size:
        raise DamagedError(f"{path} has {size} bytes, the manifest says {entry.size}; export the bundle again")
    data = path.read_bytes()
    if (found := sha256_of(data)) != entry.sha256:
        raise DamagedError(f"{path} has sha256 {found[:16]}..., the manifest says {entry.sha256[:16]}...; export the bundle again")
    return data


def class_metadata(classes: tuple[str, ...]) -> str:
    """Class names as one metadata value of a model file."""
    return json.dumps(list(classes), ensure_ascii=False)
