"""Builds an engine from an ONNX file, with a record of the build, and shows its progress.

Takes bytes; returns bytes and a record of what the engine was built from, on and for.
"""

import json
import platform
import time
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Protocol, cast

from pydantic import JsonValue

from export.errors import NotHereError, UsageError
from export.files import sha256_of
from export.tensorrt import api
from export.tensorrt.record import FORMAT_VERSION, EnginePrecision, EngineRecord, Gpus, Machine, Shapes, Source, Tensor, TimingCache
from export.tensorrt.runtime import Flavour, Gpu, Messages, gpu_here, listening, logger_of


class Watcher(Protocol):
    """Is told about the progress of a build."""

    def advance(self, steps: int = 1) -> None: ...


PARTS = 100
"""How many steps of progress a build has."""


class Course:
    """A build's way from 0 to PARTS. Phases nest; only the steps of the outermost one count."""

    def __init__(self, watcher: Watcher) -> None:
        self._watcher = watcher
        self._outermost: str | None = None
        self._steps, self._done = 1, 0
        self.interrupted = False
        """Whether Ctrl-C came inside a callback of TensorRT, which must not see the exception."""

    def start(self, phase: str, parent: str | None, steps: int) -> None:
        if parent is None and self._outermost is None:
            self._outermost, self._steps = phase, max(steps, 1)

    def step(self, phase: str, step: int) -> None:
        if phase == self._outermost:
            self._reach(PARTS * (step + 1) // self._steps)

    def finish(self, phase: str) -> None:
        if phase == self._outermost:
            self._reach(PARTS)

    def _reach(self, place: int) -> None:
        place = min(place, PARTS)
        if place > self._done:
            steps, self._done = place - self._done, place
            self._watcher.advance(steps)


def monitor_of(module: ModuleType, course: Course) -> Any:
    """TensorRT's side of a course, for a builder's config."""
    base: Any = module.IProgressMonitor

    class Monitor(base):  # type: ignore[misc]  # the class is known once the module is loaded
        def __init__(self) -> None:
            base.__init__(self)

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            course.start(phase, parent, steps)

        def step_complete(self, phase: str, step: int) -> bool:
            try:
                course.step(phase, step)
            except KeyboardInterrupt:
                course.interrupted = True
            return not course.interrupted

        def phase_finish(self, phase: str) -> None:
            course.finish(phase)

    return Monitor()


_LEVELS: Mapping[Gpus, str] = {"same": "NONE", "capability": "SAME_COMPUTE_CAPABILITY", "ampere+": "AMPERE_PLUS"}
_DIRECT = ("EDGE_MASK_CONVOLUTIONS", "JIT_CONVOLUTIONS")
"""The sources of kernels that are allowed besides TensorRT's own.

They add up the products as they are. Libraries with Winograd or FFT are not among them.
"""


@dataclass(frozen=True)
class Batches:
    """How many samples an engine takes at once, and the number it is fastest with."""

    least: int = 1
    best: int = 64
    most: int = 256

    def __post_init__(self) -> None:
        if not 1 <= self.least <= self.best <= self.most:
            raise UsageError(f"a profile needs 1 <= min <= best <= max, got {self.least}, {self.best}, {self.most}; change export.batch")


@dataclass(frozen=True, kw_only=True)
class EngineRequest:
    """What kind of engine is wanted."""

    precision: EnginePrecision
    """It comes with the ONNX file.

    The builder is only told whether products of float32 may be TF32, which is what `tf32` says.
    """
    batches: Batches = Batches()
    gpus: Gpus = "same"
    version_compatible: bool = False
    error_on_cache_miss: bool = False
    workspace: int | None = None
    """The most scratch memory that a layer may use, in bytes. None means all there is."""


@dataclass(frozen=True)
class Engine:
    """A built engine."""

    plan: bytes
    record: EngineRecord
    cache: bytes | None
    """The timings after the build, for the next build."""


def engine_from_onnx(flavour: Flavour, onnx: bytes, name: str, wanted: EngineRequest, watcher: Watcher, cache: bytes | None = None) -> Engine:
    """Build an engine. `cache` holds the timings of earlier builds."""
    module = flavour.load()
    refuse_unsupported_options(flavour, wanted)
    gpu = _gpu_for(flavour)
    with listening(module) as said:
        build = _Build(flavour, module, said)
        network = build.parsed(onnx, name)
        config = build.configured(wanted, network)
        known = build.give_timings(config, cache, demanded=wanted.error_on_cache_miss)
        started = time.monotonic()
        plan = build.run(network, config, watcher)
        seconds = time.monotonic() - started
        timings = build.timings(config)
        layers = build.layers(plan)
    record = EngineRecord(
        format_version=FORMAT_VERSION,
        plan=sha256_of(plan),
        plan_size=len(plan),
        onnx=Source(name=name, sha256=sha256_of(onnx)),
        precision=wanted.precision,
        flavour=flavour.name,
        version=module.__version__,
        built_on=_machine(gpu),
        flags=_flags(build.trt, config),
        tactic_sources=_tactic_sources(build.trt, config),
        version_compatible=wanted.version_compatible,
        gpus=wanted.gpus,
        inputs=_tensors(build.trt, [network.get_input(index) for index in range(network.num_inputs)]),
        outputs=_tensors(build.trt, [network.get_output(index) for index in range(network.num_outputs)]),
        profile=_profile(network, wanted.batches),
        build_seconds=round(seconds, 3),
        timing_cache=None if timings is None else TimingCache(before=_hash(known), after=sha256_of(timings)),
        messages=said.warnings,
        layers=layers,
    )
    return Engine(plan, record, timings)


class _Build:
    """One build: its builder, and the messages of TensorRT."""

    def __init__(self, flavour: Flavour, module: ModuleType, said: Messages) -> None:
        self.flavour, self.module, self.said = flavour, module, said
        self.trt = cast("api.TensorRt", module)
        self.builder = self.trt.Builder(logger_of(module))
        self.used: list[object] = []
        """Objects that TensorRT reads until the build is over. They must live as long."""

    def parsed(self, onnx: bytes, name: str) -> api.Network:
        network = self.builder.create_network()
        parser = self.trt.OnnxParser(network, logger_of(self.module))
        self.used.append(parser)
        if not parser.parse(onnx):
            reasons = "; ".join(_parser_error(parser.get_error(index)) for index in range(parser.num_errors))
            raise UsageError(f"{name}: {self.flavour.runtime} cannot take it: {reasons or self.said}; export only what its parser supports")
        if network.num_inputs != 1 or not network.num_outputs:
            found = f"{network.num_inputs} inputs and {network.num_outputs} outputs"
            raise UsageError(f"{name} has {found}, expected one input and at least one output; export it again")
        return network

    def configured(self, wanted: EngineRequest, network: api.Network) -> api.BuilderConfig:
        config, flag = self.builder.create_builder_config(), self.trt.BuilderFlag
        self._set(config, flag.TF32, wanted.precision == "tf32")
        self._set(config, flag.DISTRIBUTIVE_INDEPENDENCE, True)
        self._set(config, flag.VERSION_COMPATIBLE, wanted.version_compatible)
        if self.flavour.times_tactics:
            self._set(config, flag.EDITABLE_TIMING_CACHE, True)
            self._set(config, flag.ERROR_ON_TIMING_CACHE_MISS, wanted.error_on_cache_miss)
        if wanted.gpus != "same":
            config.hardware_compatibility_level = getattr(self.trt.HardwareCompatibilityLevel, _LEVELS[wanted.gpus])
        if wanted.workspace is not None:
            config.set_memory_pool_limit(self.trt.MemoryPoolType.WORKSPACE, wanted.workspace)
        self._allow_direct_tactics(config)
        config.profiling_verbosity = self.trt.ProfilingVerbosity.DETAILED
        profile = self.builder.create_optimization_profile()
        for name, shapes in _profile(network, wanted.batches).items():
            profile.set_shape(name, tuple(shapes.least), tuple(shapes.best), tuple(shapes.most))
            if [list(shape) for shape in profile.get_shape(name)] != [shapes.least, shapes.best, shapes.most]:
                raise NotHereError(f"{self.flavour.runtime} does not keep the profile of {name}: {self.said}; {self.flavour.remedy}")
        if config.add_optimization_profile(profile) < 0:
            raise UsageError(f"{self.flavour.runtime} refuses the profile {wanted.batches}: {self.said}; change export.batch")
        return config

    def _set(self, config: api.BuilderConfig, flag: Any, on: bool) -> None:
        """Set or clear a flag, and read it back: TensorRT only logs what it did not accept."""
        (config.set_flag if on else config.clear_flag)(flag)
        if config.get_flag(flag) != on:
            raise NotHereError(f"{self.flavour.runtime} does not let {flag.name} be {on}: {self.said}; {self.flavour.remedy}")

    def _allow_direct_tactics(self, config: api.BuilderConfig) -> None:
        """Exclude every other source that a TensorRT takes kernels from by default."""
        wanted = sum(1 << int(self.trt.TacticSource.__members__[name]) for name in _DIRECT)
        if not config.set_tactic_sources(wanted) or config.get_tactic_sources() != wanted:
            raise NotHereError(f"{self.flavour.runtime} does not let its tactics be chosen: {self.said}; {self.flavour.remedy}")

    def give_timings(self, config: api.BuilderConfig, cache: bytes | None, *, demanded: bool) -> bytes | None:
        """Hand over the timings of earlier builds; return them if they are of use.

        Those of another version or GPU are not. Then the build starts from scratch.
        """
        if not self.flavour.times_tactics:
            return None
        for content in (cache, None):
            timings = config.create_timing_cache(content or b"")
            if timings is not None and config.set_timing_cache(timings, False):
                self.used.append(timings)
                return content
            if demanded:
                break
        raise NotHereError(f"the timing cache is of no use here: {self.said}; build once without --error-on-cache-miss")

    def run(self, network: api.Network, config: api.BuilderConfig, watcher: Watcher) -> bytes:
        course = Course(watcher)
        monitor = monitor_of(self.module, course)
        config.progress_monitor = monitor
        plan = self.builder.build_serialized_network(network, config)
        if course.interrupted:
            raise KeyboardInterrupt
        if plan is None:
            raise NotHereError(f"{self.flavour.runtime} could not build the engine: {self.said}; {_remedy(self.said)}")
        return bytes(plan)

    def timings(self, config: api.BuilderConfig) -> bytes | None:
        cache = config.get_timing_cache() if self.flavour.times_tactics else None
        return None if cache is None else bytes(cache.serialize())

    def layers(self, plan: bytes) -> JsonValue:
        """What the engine consists of, if this machine can load it."""
        with listening(self.module) as said:
            runtime = self.trt.Runtime(logger_of(self.module))
            runtime.engine_host_code_allowed = True  # this process built it a moment ago
            engine = runtime.deserialize_cuda_engine(plan)
            if engine is None:
                return f"not read: {said}"
            text = engine.create_engine_inspector().get_engine_information(self.trt.LayerInformationFormat.JSON)
        layers: JsonValue = json.loads(text)
        return layers


def refuse_unsupported_options(flavour: Flavour, wanted: EngineRequest) -> None:
    """Refuse in one line what this TensorRT has no use for, before anything is built."""
    if flavour.times_tactics:
        return
    name = flavour.runtime
    if wanted.error_on_cache_miss:
        raise UsageError(f"{name} times nothing while it builds, so there is no cache that could miss; leave out --error-on-cache-miss")
    if wanted.version_compatible:
        raise UsageError(f"{name} builds no version-compatible engines; leave --version-compatible out, and build again with each version")
    if wanted.gpus != "same":
        raise UsageError(f"an engine of {name} runs on every GPU that it supports anyway; leave out --gpus")


def _gpu_for(flavour: Flavour) -> Gpu | None:
    """The GPU to build on. A flavour that does not time kernels needs none."""
    try:
        return gpu_here()
    except NotHereError as error:
        if flavour.times_tactics:
            raise NotHereError(f"{flavour.runtime} builds on the GPU that the engine is for: {error}") from error
        return None


def _machine(gpu: Gpu | None) -> Machine:
    system = f"{platform.system()} {platform.machine()}"
    if gpu is None:
        return Machine(gpu=None, capability=None, driver=None, cuda=None, system=system)
    return Machine(gpu=gpu.name, capability=gpu.capability, driver=gpu.driver, cuda=gpu.cuda, system=system)


def _flags(trt: api.TensorRt, config: api.BuilderConfig) -> dict[str, bool]:
    return {name: bool(config.get_flag(flag)) for name, flag in sorted(trt.BuilderFlag.__members__.items())}


def _tactic_sources(trt: api.TensorRt, config: api.BuilderConfig) -> list[str]:
    return [name for name, source in sorted(trt.TacticSource.__members__.items()) if config.get_tactic_sources() >> int(source) & 1]


def _tensors(trt: api.TensorRt, tensors: list[api.Tensor]) -> list[Tensor]:
    return [
        Tensor.model_validate(
            {
                "name": tensor.name,
                "dtype": trt.nptype(tensor.dtype).__name__,
                "shape": [None if size < 0 else size for size in tensor.shape],
            }
        )
        for tensor in tensors
    ]


def _profile(network: api.Network, batches: Batches) -> dict[str, Shapes]:
    """The shapes of every input: its own sizes, and the batch."""
    shapes = {}
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        _, *sizes = tensor.shape
        shapes[tensor.name] = Shapes(least=[batches.least, *sizes], best=[batches.best, *sizes], most=[batches.most, *sizes])
    return shapes


def _parser_error(error: api.ParserError) -> str:
    what = " ".join(error.desc().split())
    if error.node() < 0:
        return what
    return f"node {error.node()} ({error.node_operator()}{f', {error.node_name()}' if error.node_name() else ''}): {_meant(what)}"


def _meant(what: str) -> str:
    """What the parser means. For an operation that it lacks it quotes a failed condition, false."""
    return "not supported" if what == "false" else what


def _remedy(said: Messages) -> str:
    text = str(said).lower()
    if "timing cache" in text:
        return "build once without --error-on-cache-miss, which fills the cache"
    if "memory" in text or "workspace" in text:
        return "give it more memory, or a smaller export.batch.max"
    return "choose another flavour or precision"


def _hash(content: bytes | None) -> str | None:
    return None if content is None else sha256_of(content)
