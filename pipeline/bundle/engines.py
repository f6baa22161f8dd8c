"""The engines of a bundle, built from its ONNX files and stored with their records and timings.

Takes a folder that is becoming a bundle. What the engines must hold is in `chain`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import JsonValue

from deploy.progress import Console
from deploy.runners.tensorrt import EngineFile, require_tensorrt
from export.bundle import EXACT_TENSORRT_MODEL, MODEL, Bundle
from export.errors import NotHereError, UsageError
from export.files import write_file
from export.tensorrt.builder import PARTS, Batches, Engine, EngineRequest, engine_from_onnx, refuse_unsupported_options
from export.tensorrt.float16 import float16_onnx
from export.tensorrt.record import FOLDER, ONNX_FILES, EnginePrecision, EngineRecord, Gpus, SecondBuild, plan_name, record_name
from export.tensorrt.runtime import FLAVOURS, Flavour, FlavourName, gpu_here
from pipeline.config.sections import Batch, Export


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """What the user wants of engines."""

    flavour: FlavourName | None = None
    """None: the full TensorRT if it can build, or else TensorRT-RTX."""
    precisions: tuple[EnginePrecision, ...] = ()
    """Empty: float32, and exact if the bundle has an exact file."""
    gpus: Gpus = "same"
    version_compatible: bool = False
    error_on_cache_miss: bool = False
    twice: bool = True
    """Whether to build each engine a second time, with timings of its own, to see what that
    changes."""


@dataclass(frozen=True)
class BuiltEngine:
    """An engine that was just built, and the second one that it is compared with."""

    name: str
    engine: Engine
    second: Engine | None


def runnable_flavour() -> Flavour:
    """Return a TensorRT whose engines can run here; raise NotHereError with the reason if there is
    none."""
    gpu_here()
    reasons = []
    for flavour in FLAVOURS.values():
        try:
            require_tensorrt(flavour.runtime)
            return flavour
        except NotHereError as error:
            reasons.append(str(error))
    raise NotHereError("; ".join(reasons))


def building_flavour(asked: FlavourName | None) -> Flavour:
    """Return the TensorRT that builds.

    That is the requested one, or else one that can run here, or else one that builds without a GPU.
    """
    if asked is not None:
        FLAVOURS[asked].load()
        return FLAVOURS[asked]
    try:
        return runnable_flavour()
    except NotHereError as error:
        without_gpu = next(flavour for flavour in FLAVOURS.values() if not flavour.times_tactics)
        try:
            without_gpu.load()
        except NotHereError:
            raise error from None
        return without_gpu


def require_buildable(bundle: Bundle, flavour: Flavour, options: EngineOptions, batch: Batch) -> None:
    """Refuse, before a build, precisions without a file in the bundle or without support in this
    TensorRT."""
    for precision in options.precisions:
        refuse_unsupported_options(flavour, _engine_request(precision, options, batch))
        if precision != "float16" and not bundle.has(ONNX_FILES[precision]):  # that file is made for the engine
            raise _without_a_file(precision)


def engines_of_a_run(folder: Path, flavour: Flavour, options: Export, console: Console) -> list[BuiltEngine]:
    """Build engines for a bundle in the making.

    An engine that cannot be built is left out, unless the config requires engines.
    """
    built = []
    for precision in precisions_of(folder):
        try:
            built += build_engines(folder, EngineOptions(flavour=flavour.name, precisions=(precision,)), options.batch, console)
        except (NotHereError, UsageError) as error:
            if options.tensorrt is True:
                raise
            console.say(f"no {precision} engine: {error}")
    return built


def second_builds(built: Sequence[BuiltEngine]) -> dict[str, EngineFile]:
    """Return the engines that were built to be compared with those that are kept."""
    return {
        each.name: EngineFile(f"the second build of {plan_name(each.name)}", each.second.plan, each.second.record)
        for each in built
        if each.second is not None
    }


def build_engines(folder: Path, options: EngineOptions, batch: Batch, console: Console) -> list[BuiltEngine]:
    """Build into a folder that holds a bundle's files."""
    flavour = building_flavour(options.flavour)
    (folder / FOLDER).mkdir(exist_ok=True)
    precisions = dict.fromkeys(options.precisions or precisions_of(folder))
    return [_build(folder, flavour, precision, options, batch, console) for precision in precisions]


def precisions_of(folder: Path) -> Sequence[EnginePrecision]:
    """Return the precisions of the engines that a bundle gets by default."""
    return ("float32", "exact") if (folder / EXACT_TENSORRT_MODEL).is_file() else ("float32",)


def _build(folder: Path, flavour: Flavour, precision: EnginePrecision, options: EngineOptions, batch: Batch, console: Console) -> BuiltEngine:
    onnx = _onnx_of(folder, precision)
    wanted = _engine_request(precision, options, batch)
    cache = folder / FOLDER / _cache_name(flavour) if flavour.times_tactics else None
    timings = cache.read_bytes() if cache is not None and cache.is_file() else None
    console.say(f"building an engine: {precision}, {flavour.runtime}")
    with console.progress(f"{flavour.runtime} {precision}", PARTS * (1 + options.twice)) as progress:
        first = engine_from_onnx(flavour, onnx, ONNX_FILES[precision], wanted, progress, timings)
        second = engine_from_onnx(flavour, onnx, ONNX_FILES[precision], wanted, progress) if _again(options) else None
    record = first.record.model_copy(update={"second_build": None if second is None else _compared(first, second)})
    name = _name(record)
    write_file(folder / plan_name(name), first.plan)
    write_file(folder / record_name(name), record.to_bytes())
    if cache is not None and first.cache is not None:
        write_file(cache, first.cache)
    return BuiltEngine(name, Engine(first.plan, record, first.cache), second)


def _engine_request(precision: EnginePrecision, options: EngineOptions, batch: Batch) -> EngineRequest:
    return EngineRequest(
        precision=precision,
        batches=Batches(batch.min, batch.best, batch.max),
        gpus=options.gpus,
        version_compatible=options.version_compatible,
        error_on_cache_miss=options.error_on_cache_miss,
    )


def _again(options: EngineOptions) -> bool:
    """Return whether to build again.

    A build that may only use known timings cannot be compared with one that knows none.
    """
    return options.twice and not options.error_on_cache_miss


def _compared(first: Engine, second: Engine) -> SecondBuild:
    same_place = sum(a == b for a, b in zip(first.plan, second.plan, strict=False))
    differing = max(len(first.plan), len(second.plan)) - same_place
    return SecondBuild(plan=second.record.plan, plan_size=second.record.plan_size, bytes_that_differ=differing)


def _onnx_of(folder: Path, precision: EnginePrecision) -> bytes:
    path = folder / ONNX_FILES[precision]
    if precision == "float16":
        write_file(path, float16_onnx((folder / MODEL).read_bytes()))
    if not path.is_file():
        raise _without_a_file(precision)
    return path.read_bytes()


def _without_a_file(precision: EnginePrecision) -> UsageError:
    return UsageError(f"there is no {ONNX_FILES[precision]} in the bundle, so it has no {precision} engine; train with exact.enabled: true")


def _name(record: EngineRecord) -> str:
    compiled_later = FLAVOURS[record.flavour].compiles_where_it_runs
    parts = [record.precision, record.flavour, *([] if compiled_later else [_plain(record.built_on.gpu or "")])]
    return "-".join(parts)


def _cache_name(flavour: Flavour) -> str:
    return f"{flavour.name}-{_plain(gpu_here().name)}.timings"


def _plain(gpu: str) -> str:
    return "_".join("".join(each if each.isalnum() else " " for each in gpu.lower()).split())


def facts_of(built: Sequence[BuiltEngine]) -> Mapping[str, JsonValue]:
    """Return what was built, by name, without the layers."""
    return {each.name: each.engine.record.model_dump(mode="json", exclude={"layers"}) for each in built}
