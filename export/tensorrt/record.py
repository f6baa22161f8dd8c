"""The record beside an engine: which file it is, built from what, by what, for what.

It is read and checked before TensorRT sees the engine. An engine is machine code for one version
of TensorRT and one type of GPU; the record says so in words.
"""

from pathlib import Path, PurePosixPath
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator

from export.bundle import EXACT_TENSORRT_MODEL, FLOAT16_MODEL, MODEL, json_bytes
from export.errors import DamagedError
from export.files import sha256_of
from export.tensorrt.runtime import FLAVOURS, FlavourName

FOLDER = "engines"
FORMAT_VERSION: Literal[1] = 1
_LARGEST_RECORD = 64 * 2**20
EnginePrecision = Literal["float32", "tf32", "float16", "exact"]
ONNX_FILES: dict[EnginePrecision, str] = {"float32": MODEL, "tf32": MODEL, "float16": FLOAT16_MODEL, "exact": EXACT_TENSORRT_MODEL}
"""The file of a bundle that an engine of each precision is built from."""
Gpus = Literal["same", "capability", "ampere+"]
"""Which other GPUs an engine of the full TensorRT must run on.

In this order: none, those of its compute capability, Ampere and newer.
"""
Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Size = Annotated[int, Field(ge=1, le=2**31 - 1)]
Version = Annotated[str, Field(pattern=r"^\d{1,9}(\.\d{1,9}){1,5}$")]


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Source(_Entry):
    """The ONNX file that an engine was built from."""

    name: str
    sha256: Hash


class Machine(_Entry):
    """Where an engine was built. A GPU is named if there was one."""

    gpu: str | None
    capability: Annotated[str, Field(pattern=r"^\d{1,3}\.\d{1,2}$")] | None
    driver: str | None
    cuda: str | None
    system: str


class Shapes(_Entry):
    """The sizes of an input that an engine takes, and the one it is fastest with."""

    least: list[Size]
    best: list[Size]
    most: list[Size]


class Tensor(_Entry):
    """An input or output; null stands for the batch."""

    name: str
    dtype: Literal["uint8", "float32"]
    shape: list[Size | None]


class TimingCache(_Entry):
    """The timings that the build could use, and those that it left behind."""

    before: Hash | None
    after: Hash


class SecondBuild(_Entry):
    """Another engine from the same file, built right after the first with timings of its own."""

    plan: Hash
    plan_size: Size
    bytes_that_differ: Annotated[int, Field(ge=0)]


class EngineRecord(_Entry):
    """The content of `engines/<name>.json`."""

    format_version: Literal[1]
    plan: Hash
    plan_size: Size
    onnx: Source
    precision: EnginePrecision
    flavour: FlavourName
    version: Version
    built_on: Machine
    flags: dict[str, bool]
    """Every builder flag, as read back before the build."""
    tactic_sources: list[str]
    """Where kernels may come from besides TensorRT's own, as read back before the build."""
    version_compatible: bool
    gpus: Gpus
    inputs: list[Tensor]
    outputs: list[Tensor]
    profile: dict[str, Shapes]
    """By input."""
    build_seconds: Annotated[float, Field(ge=0)]
    timing_cache: TimingCache | None
    """None if the flavour does not time kernels."""
    second_build: SecondBuild | None = None
    """None if there was none. What it gives is among the checks of verification.json."""
    messages: list[str]
    """The warnings of the builder."""
    layers: JsonValue
    """What the engine consists of, or why that could not be read."""

    @model_validator(mode="after")
    def _of_one_story(self) -> Self:
        """Check the record against itself.

        There is one input. The batch is the first size of every tensor and the only free one. The
        profile is of that input.
        """
        tensors = [*self.inputs, *self.outputs]
        if len(self.inputs) != 1 or not self.outputs or len({tensor.name for tensor in tensors}) != len(tensors):
            raise ValueError("expected one input and outputs, each of a name of its own")
        if any(not tensor.shape or tensor.shape[0] is not None or None in tensor.shape[1:] for tensor in tensors):
            raise ValueError("expected the batch as the first size of each tensor, and no other that is free")
        (image,) = self.inputs
        shapes = self.profile.get(image.name)
        if shapes is None or len(self.profile) != 1:
            raise ValueError(f"expected a profile of {image.name} and of nothing else")
        if any(len(sizes) != len(image.shape) or sizes[1:] != image.shape[1:] for sizes in (shapes.least, shapes.best, shapes.most)):
            raise ValueError(f"the profile does not fit {image.name}")
        if not shapes.least[0] <= shapes.best[0] <= shapes.most[0]:
            raise ValueError("expected least <= best <= most")
        return self

    @property
    def batches(self) -> range:
        """The numbers of samples that may be run at once."""
        (shapes,) = self.profile.values()
        return range(shapes.least[0], shapes.most[0] + 1)

    @property
    def built_for(self) -> str:
        """What the engine was built for, in words."""
        runtime = FLAVOURS[self.flavour].runtime
        if FLAVOURS[self.flavour].compiles_where_it_runs:
            return f"{runtime} {self.version}"
        return f"{runtime} {self.version} on {self.built_on.gpu} (compute capability {self.built_on.capability})"

    @property
    def rebuild(self) -> str:
        """The command that builds one for this machine."""
        return f"pipeline export BUNDLE --tensorrt --flavour {self.flavour} --precision {self.precision}"

    def to_bytes(self) -> bytes:
        return json_bytes(self.model_dump())


def plan_name(engine: str) -> str:
    """Where a bundle keeps the engine of this name."""
    return f"{FOLDER}/{engine}.plan"


def record_name(engine: str) -> str:
    """Where a bundle keeps the record of the engine of this name."""
    return f"{FOLDER}/{engine}.json"


def engines_among(names: list[str]) -> list[str]:
    """The names of the engines among the files of a bundle."""
    paths = map(PurePosixPath, sorted(names))
    return [path.stem for path in paths if path.parent.as_posix() == FOLDER and path.suffix == ".plan"]


def parsed_record(content: bytes, place: str) -> EngineRecord:
    """The record. DamagedError if the content is none."""
    try:
        return EngineRecord.model_validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the top"
        raise DamagedError(f"{place} is not the record of an engine: at {where}: {first['msg']}; build the engine again") from error


def read_record(path: Path) -> EngineRecord:
    """The record in this file, or DamagedError. A file larger than any record is not read."""
    if (size := path.stat().st_size) > _LARGEST_RECORD:
        raise DamagedError(f"{path} is not the record of an engine: it has {size} bytes, at most {_LARGEST_RECORD} were expected; {_AGAIN}")
    return parsed_record(path.read_bytes(), str(path))


def require_the_size(record: EngineRecord, size: int, place: str) -> None:
    """Raise DamagedError unless a plan of this size can be the recorded one. Reads no plan."""
    if size != record.plan_size:
        raise DamagedError(f"{place} has {size} bytes, its record says {record.plan_size}; {_AGAIN}")


def require_the_engine_of(record: EngineRecord, plan: bytes, place: str) -> None:
    """Raise DamagedError unless these bytes are the engine that the record describes."""
    if (found := sha256_of(plan)) != record.plan or len(plan) != record.plan_size:
        raise DamagedError(
            f"{place} has {len(plan)} bytes and sha256 {found[:16]}..., its record says {record.plan_size} and {record.plan[:16]}...; {_AGAIN}"
        )
    for flavour in FLAVOURS.values():
        if plan.startswith(flavour.magic) and flavour.name != record.flavour:
            raise DamagedError(f"{place} is an engine of {flavour.runtime}, its record says {FLAVOURS[record.flavour].runtime}; {_AGAIN}")
    if not plan.startswith(FLAVOURS[record.flavour].magic):
        raise DamagedError(f"{place} is not an engine of {FLAVOURS[record.flavour].runtime}: it begins with {plan[:4]!r}; {_AGAIN}")


def require_built_from(record: EngineRecord, sha256: str, place: str) -> None:
    """Raise DamagedError unless the engine was built from the ONNX file with this hash."""
    if record.onnx.sha256 != sha256:
        raise DamagedError(
            f"{place} was built from a {record.onnx.name} with sha256 {record.onnx.sha256[:16]}..., this one has {sha256[:16]}...; {_AGAIN}"
        )


_AGAIN = "build the engine again"
