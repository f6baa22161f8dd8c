"""The engines' place in the chains: which link leads to each, what it must hold, and the links of those that are not there.

Takes chains and engine files; opens nothing by itself.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from deploy.runners.base import Runner
from deploy.runners.table import RunOptions
from deploy.runners.tensorrt import EngineFile, open_engine
from deploy.verify.budget import Precision
from deploy.verify.chain import Chain, Link, Stage
from deploy.verify.invariance import Variant
from deploy.verify.verdict import Requirement
from export.engines.flavour import FLAVOURS
from export.engines.record import EnginePrecision, EngineRecord
from export.errors import NotHereError
from pipeline.chains import EXACT, FILE, TENSORRT_FILE, FileForm
from pipeline.engines import runnable_flavour

FLOAT16_FILE = "float16 ONNX file"
BUILDS = "builds"
_PRECISIONS: Mapping[EnginePrecision, Precision] = {"float32": "float32", "tf32": "tf32", "float16": "float16", "exact": "float32"}
_BUILD = "pipeline export BUNDLE --tensorrt"


@dataclass(frozen=True)
class Engines:
    """The engines of a bundle by name, second builds of some of them, and the ONNX file of those in float16."""

    files: Mapping[str, EngineFile]
    second_builds: Mapping[str, EngineFile]
    float16_model: Path | None
    wanted: bool
    """Whether a verdict says so where there are none."""
    beyond_plain: Counter[str]
    """What the file in float16 may hold besides plain layers."""

    def of(self, *precisions: EnginePrecision) -> dict[str, EngineFile]:
        return {name: file for name, file in self.files.items() if file.record.precision in precisions}


def with_float_engines(chain: Chain, engines: Engines) -> Chain:
    """The chain of the float forms, with links to the engines in float32, TF32 and float16."""
    stages, links = _stages(engines, engines.of("float32", "tf32"), FILE, "budget")
    if not engines.of("float32") and engines.wanted:
        stages, links = _with_absent(stages, links, "tensorrt float32", FILE, "budget")
    if engines.float16_model is not None:
        file = FileForm(engines.float16_model, engines.beyond_plain).stage(FLOAT16_FILE, "onnxruntime-cpu", RunOptions(optimisation="none"), "budget")
        halves, half_links = _stages(engines, engines.of("float16"), FLOAT16_FILE, "budget")
        stages, links = [*stages, replace(file, precision="float16"), *halves], [*links, Link(FILE, FLOAT16_FILE, "budget"), *half_links]
    return _longer(chain, stages, links)


def with_exact_engines(chain: Chain, engines: Engines) -> Chain:
    """The chain of the exact forms, with links to the exact engines."""
    stages, links = _stages(engines, engines.of("exact"), TENSORRT_FILE, "bitwise")
    if not stages and engines.wanted:
        stages, links = _with_absent(stages, links, f"{EXACT} tensorrt", TENSORRT_FILE, "bitwise")
    return _longer(chain, stages, links)


def _longer(chain: Chain, stages: Sequence[Stage], links: Sequence[Link]) -> Chain:
    return replace(chain, stages=(*chain.stages, *stages), links=(*chain.links, *links))


def _stages(engines: Engines, files: Mapping[str, EngineFile], source: str, required: Requirement) -> tuple[list[Stage], list[Link]]:
    stages = [_stage(name, file, engines.second_builds.get(name), required) for name, file in files.items()]
    return stages, [Link(source, stage.name, required) for stage in stages]


def _stage(name: str, file: EngineFile, second: EngineFile | None, required: Requirement) -> Stage:
    def opened(file: EngineFile = file) -> Runner:
        return open_engine(file)

    variants = () if second is None else (Variant(check=BUILDS, setting="a second build", open=lambda: opened(second)),)
    return Stage(
        name=f"engine {name}",
        runtime=FLAVOURS[file.record.flavour].runtime,
        device="cuda",
        precision=_PRECISIONS[file.record.precision],
        open=opened,
        invariance_required=required,
        profile=_sizes_over(file.record),
        variants=variants,
    )


def _sizes_over(record: EngineRecord) -> tuple[int, ...]:
    """Where kernels change, if they do: the ends of the profile, the size it was tuned for, the powers of two, and one that is odd and large."""
    least, most = record.batches[0], record.batches[-1]
    (shapes,) = record.profile.values()
    powers = (2**exponent for exponent in range(most.bit_length()))
    return tuple(sorted({least, shapes.best[0], most, max(least, most - 1), *(size for size in powers if size in record.batches)}))


def _with_absent(stages: list[Stage], links: list[Link], name: str, source: str, required: Requirement) -> tuple[list[Stage], list[Link]]:
    stage = Stage(name=name, runtime="tensorrt", device="cuda", precision="float32", open=_no_engine, invariance_required=None)
    return [*stages, stage], [*links, Link(source, name, required)]


def _no_engine() -> Runner:
    """What is missing: a GPU, TensorRT, or only the engine."""
    try:
        runtime = runnable_flavour().runtime
    except NotHereError as error:
        raise NotHereError(f"there is no tensorrt engine: {error}") from error
    raise NotHereError(f"there is no tensorrt engine; {runtime} is here, so build one: {_BUILD}")
