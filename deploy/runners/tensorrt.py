"""Runs an engine of TensorRT, after its record has been checked. Nothing is ever rebuilt here.

The record must be of this file, this version and this GPU. Takes an engine with its record; needs
no PyTorch. One `LoadedEngine` serves many workers, each with a runner of its own.
"""

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from math import prod
from types import ModuleType
from typing import Any, cast

import numpy as np

from deploy.runners.cuda import Bytes, CudaDriver, Driver, Graph
from deploy.runners.runner import Array, Finding, Runner, TensorSpec
from export.bundle import Bundle
from export.errors import DamagedError, NotHereError, UsageError
from export.tensorrt import api
from export.tensorrt.record import (
    ONNX_FILES,
    EngineRecord,
    Tensor,
    engines_among,
    parsed_record,
    plan_name,
    record_name,
    require_built_from,
    require_the_engine_of,
)
from export.tensorrt.runtime import FLAVOURS, Flavour, Gpu, flavour_of_runtime, listening, logger_of

_KEPT_SIZES = 32
"""How many batch sizes keep a context and a CUDA graph. The least recently used one goes first."""


@dataclass(frozen=True)
class EngineFile:
    """A stored engine, with what is known about it."""

    place: str
    """Where it is stored, for messages."""
    plan: bytes
    record: EngineRecord
    onnx_sha256: str | None = None
    """The hash of the ONNX file that it must be built from, if known."""


class LoadedEngine:
    """An engine on the GPU, ready for any number of runners."""

    def __init__(self, file: EngineFile, driver: Driver | None = None) -> None:
        """Check the engine, then deserialise it.

        The checks that need no TensorRT come first.
        """
        require_the_engine_of(file.record, file.plan, file.place)
        if file.onnx_sha256 is not None:
            require_built_from(file.record, file.onnx_sha256, file.place)
        self.record = file.record
        self.flavour = FLAVOURS[file.record.flavour]
        module = self.flavour.load()
        _require_version(file, module.__version__)
        self.driver = driver or CudaDriver()
        self.gpu = self.driver.gpu()
        _require_gpu(file, self.flavour, self.gpu)
        self.trt = cast("api.TensorRt", module)
        self._runtime = self.trt.Runtime(logger_of(module))  # must outlive the engine
        # A version-compatible engine brings the code of its own runtime. That code is run because
        # the engine's hash is the one in the record.
        self._runtime.engine_host_code_allowed = file.record.version_compatible
        self.engine = _deserialised(file, self._runtime, module)
        _require_the_tensors(file, self.trt, self.engine)

    def context(self) -> api.ExecutionContext:
        """A new execution context, whose user provides the scratch memory."""
        config = self.engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(self.trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        if self.flavour.compiles_where_it_runs:
            # By default it runs a fallback kernel until a better one is compiled. The same batch
            # would get other bits some runs later.
            trt, config_of_rtx = cast("api.TensorRtRtx", self.trt), cast("api.RuntimeConfigOfRtx", config)
            config_of_rtx.dynamic_shapes_kernel_specialization_strategy = trt.DynamicShapesKernelSpecializationStrategy.EAGER
        context = self.engine.create_execution_context(config)
        if context is None:
            raise NotHereError(f"{self.flavour.runtime} could not make an execution context; free memory of the GPU")
        return context


def _require_version(file: EngineFile, version: str) -> None:
    record = file.record
    same = version == record.version
    compatible = record.version_compatible and _major(version) == _major(record.version) and _parts(version) >= _parts(record.version)
    if not same and not compatible:
        raise NotHereError(f"{file.place} was built for {record.built_for}, {version} is installed; build it again: {record.rebuild}")


def _require_gpu(file: EngineFile, flavour: Flavour, gpu: Gpu) -> None:
    record = file.record
    if flavour.compiles_where_it_runs:
        fits = flavour.capabilities is None or gpu.capability in flavour.capabilities
    elif record.gpus == "same":
        fits = (gpu.name, gpu.capability) == (record.built_on.gpu, record.built_on.capability)
    elif record.gpus == "capability":
        fits = gpu.capability == record.built_on.capability
    else:
        fits = _parts(gpu.capability) >= (8, 0)
    if not fits:
        here = f"this GPU is {gpu.name} (compute capability {gpu.capability})"
        raise NotHereError(f"{file.place} was built for {record.built_for}, {here}; build it again: {record.rebuild}")


def _deserialised(file: EngineFile, runtime: api.Runtime, module: ModuleType) -> api.Engine:
    with listening(module) as said:
        engine = runtime.deserialize_cuda_engine(file.plan)
    if engine is None:
        raise NotHereError(f"{file.place}: TensorRT refuses the engine: {said}; build it again: {file.record.rebuild}")
    return engine


def _require_the_tensors(file: EngineFile, trt: api.TensorRt, engine: api.Engine) -> None:
    """The engine must have the inputs, outputs and profile that its record states."""
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    found = {
        name: (
            engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT,
            trt.nptype(engine.get_tensor_dtype(name)).__name__,
            [None if size < 0 else size for size in engine.get_tensor_shape(name)],
        )
        for name in names
    }
    told = {
        each.name: (given, each.dtype, each.shape)
        for given, tensors in ((True, file.record.inputs), (False, file.record.outputs))
        for each in tensors
    }
    profile = {name: [list(shape) for shape in engine.get_tensor_profile_shape(name, 0)] for name, (given, *_) in found.items() if given}
    promised = {name: [shapes.least, shapes.best, shapes.most] for name, shapes in file.record.profile.items()}
    if (found, profile) != (told, promised):
        raise DamagedError(f"{file.place} has {found} and takes {profile}, its record says {told} and {promised}; build the engine again")


class TensorRtRunner(Runner):
    """An engine for one worker: its own buffers and stream, and a CUDA graph per batch size."""

    def __init__(self, loaded: LoadedEngine, *, graphs: bool = True) -> None:
        record = loaded.record
        self.name = f"{loaded.flavour.runtime} ({record.precision})"
        self.inputs, self.outputs = specs_of(record)
        self._loaded, self._graphs = loaded, graphs
        self._lanes: OrderedDict[int, _Lane] = OrderedDict()
        self._held = ExitStack()
        try:
            self._device = _Device(loaded.driver, self._held, loaded.engine.device_memory_size_v2)
            most = record.batches[-1]
            self._buffers = {each.name: _Buffer(each, most, loaded.driver, self._held) for each in (*record.inputs, *record.outputs)}
            self._lane(record.batches[0])  # an engine that cannot run fails now, not at the first request
        except BaseException:
            self.close()
            raise

    @property
    def batch_sizes(self) -> range:
        return self._loaded.record.batches

    @property
    def facts(self) -> Mapping[str, object]:
        record, gpu = self._loaded.record, self._loaded.gpu
        return {
            "runtime": self._loaded.flavour.runtime,
            "version": record.version,
            "device": gpu.name,
            "capability": gpu.capability,
            "driver": gpu.driver,
            "cuda": gpu.cuda,
            "precision": record.precision,
            "flags": {name: on for name, on in record.flags.items() if on or name == "TF32"},
            "engine": record.plan,
            "onnx": record.onnx.sha256,
            "batch_sizes": [record.batches[0], record.batches[-1]],
            "cuda_graphs": self._graphs,
        }

    def close(self) -> None:
        while self._lanes:
            self._lanes.popitem()[1].close()
        self._held.close()

    def _run(self, batch: Mapping[str, Array]) -> dict[str, Array]:
        if not self._lanes:
            raise RuntimeError(f"{self.name} is closed")
        size = len(batch[self.inputs[0].name])
        lane = self._lane(size)
        for spec in self.inputs:
            np.copyto(self._buffers[spec.name].host(size), batch[spec.name])
        lane.run()
        return {spec.name: self._buffers[spec.name].host(size).copy() for spec in self.outputs}

    def _lane(self, size: int) -> "_Lane":
        if size in self._lanes:
            self._lanes.move_to_end(size)
            return self._lanes[size]
        while len(self._lanes) >= _KEPT_SIZES:
            self._lanes.popitem(last=False)[1].close()
        lane = _Lane(self._loaded, self._device, self._buffers, size, graphs=self._graphs)
        self._lanes[size] = lane
        return lane


class _Device:
    """A worker's stream, and the scratch memory that its contexts share in turn."""

    def __init__(self, driver: Driver, held: ExitStack, scratch_size: int) -> None:
        self.driver = driver
        self.stream = driver.stream()
        held.callback(driver.free_stream, self.stream)
        self.scratch_size = scratch_size
        self.scratch = driver.allocate(scratch_size) if scratch_size else 0
        if scratch_size:
            held.callback(driver.free, self.scratch)


class _Buffer:
    """Memory for the largest batch of one tensor, on the host and on the GPU."""

    def __init__(self, tensor: Tensor, most: int, driver: Driver, held: ExitStack) -> None:
        self._sizes = tuple(size for size in tensor.shape[1:] if size is not None)
        self._dtype = np.dtype(tensor.dtype)
        self._sample = prod(self._sizes) * self._dtype.itemsize
        self._host: Bytes = driver.allocate_pinned(most * self._sample)
        held.callback(driver.free_pinned, self._host)
        self.address = driver.allocate(most * self._sample)
        held.callback(driver.free, self.address)

    def bytes(self, size: int) -> Bytes:
        """The host's memory for this many samples."""
        return self._host[: size * self._sample]

    def host(self, size: int) -> Array:
        """The same memory as an array of the tensor's type and shape."""
        values: Array = self.bytes(size).view(self._dtype)
        return values.reshape(self.shape(size))

    def shape(self, size: int) -> tuple[int, ...]:
        return size, *self._sizes


class _Lane:
    """A context for one batch size, with its CUDA graph.

    Each size has its own, because TensorRT wants a captured context never to be changed.
    """

    def __init__(self, loaded: LoadedEngine, device: _Device, buffers: Mapping[str, _Buffer], size: int, *, graphs: bool) -> None:
        self._device, self._buffers, self._size = device, buffers, size
        self._inputs = [each.name for each in loaded.record.inputs]
        self._graph: Graph | None = None
        self._context = loaded.context()
        self._context.set_device_memory(device.scratch, device.scratch_size)
        self._set_shapes(loaded)
        self._enqueue()  # after a change of shapes TensorRT does work that must not be part of the graph
        device.driver.wait(device.stream)
        if graphs:
            self._graph = device.driver.captured(self._enqueue, device.stream)

    def run(self) -> None:
        """Run from the host's input buffers to the host's output buffers."""
        if self._graph is None:
            self._enqueue()
        else:
            self._device.driver.launch(self._graph, self._device.stream)
        self._device.driver.wait(self._device.stream)

    def close(self) -> None:
        if self._graph is not None:
            self._device.driver.free_graph(self._graph)
            self._graph = None

    def _set_shapes(self, loaded: LoadedEngine) -> None:
        for name, buffer in self._buffers.items():
            shape = buffer.shape(self._size)
            if name in self._inputs and not self._context.set_input_shape(name, shape):
                raise UsageError(f"{loaded.flavour.runtime} does not take {name} as {shape}; see the profile in the engine's record")
            if not self._context.set_tensor_address(name, buffer.address):
                raise RuntimeError(f"{loaded.flavour.runtime} does not take the memory for {name}")
        if unset := list(self._context.infer_shapes()):
            raise RuntimeError(f"{loaded.flavour.runtime} does not know the shapes of {unset}")
        for name, buffer in self._buffers.items():
            found, wanted = tuple(self._context.get_tensor_shape(name)), buffer.shape(self._size)
            if found != wanted:
                raise RuntimeError(f"{loaded.flavour.runtime} gives {name} the shape {found}, expected {wanted}")

    def _enqueue(self) -> None:
        driver, stream = self._device.driver, self._device.stream
        for name, buffer in self._buffers.items():
            if name in self._inputs:
                driver.to_device(buffer.address, buffer.bytes(self._size), stream)
        if not self._context.execute_async_v3(stream):
            raise RuntimeError(f"TensorRT could not run a batch of {self._size}")
        for name, buffer in self._buffers.items():
            if name not in self._inputs:
                driver.to_host(buffer.bytes(self._size), buffer.address, stream)


def specs_of(record: EngineRecord) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """The inputs and outputs of an engine, according to its record."""
    return tuple(map(_spec, record.inputs)), tuple(map(_spec, record.outputs))


def _spec(tensor: Tensor) -> TensorSpec:
    return TensorSpec(tensor.name, tensor.dtype, tuple(tensor.shape))


def _parts(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def _major(version: str) -> int:
    return _parts(version)[0]


def open_engine(file: EngineFile, *, graphs: bool = True, driver: Driver | None = None) -> TensorRtRunner:
    """Load an engine and make one runner of it."""
    return TensorRtRunner(LoadedEngine(file, driver), graphs=graphs)


def stored_engines(bundle: Bundle) -> Iterator[tuple[str, EngineFile]]:
    """Every engine of a bundle, with its record and the present hash of its ONNX file."""
    for name in engines_among(list(bundle.manifest.files)):
        place = f"{bundle.folder / record_name(name)}"
        record = parsed_record(bundle.read(record_name(name)), place)
        onnx = ONNX_FILES[record.precision]
        if record.onnx.name != onnx or not bundle.has(onnx):
            raise DamagedError(f"{place}: a {record.precision} engine is built from {onnx}, found {record.onnx.name}; build the engine again")
        yield name, EngineFile(f"{bundle.folder / plan_name(name)}", bundle.read(plan_name(name)), record, bundle.hashes[onnx])


def require_tensorrt(runtime: str) -> None:
    """NotHereError unless engines of this TensorRT can be loaded here and a GPU can run them."""
    flavour = flavour_of_runtime(runtime)
    flavour.load()
    gpu = CudaDriver().gpu()
    if flavour.capabilities is not None and gpu.capability not in flavour.capabilities:
        raise NotHereError(f"{runtime} was requested, but it does not run on {gpu.name} (compute capability {gpu.capability}); use the full TensorRT")


def probe(flavour: Flavour) -> Finding:
    """Build an engine of one layer, and see whether it can be made ready to run."""
    trt: Any = flavour.load()
    logger = trt.Logger(trt.Logger.WARNING)
    plan = _tiny_plan(trt, logger)
    runs = plan is not None and _runs(trt, logger, plan)
    detail = f"{trt.__version__}, " + ("builds and runs engines" if runs else "builds engines, cannot run them" if plan else "cannot build engines")
    return Finding(runs, detail, {"version": trt.__version__, "builds": plan is not None, "runs": runs})


def _tiny_plan(trt: Any, logger: Any) -> Any:
    builder = trt.Builder(logger)
    network = builder.create_network()
    relu = network.add_activation(network.add_input("x", trt.float32, (1, 4)), trt.ActivationType.RELU)
    network.mark_output(relu.get_output(0))
    return builder.build_serialized_network(network, builder.create_builder_config())


def _runs(trt: Any, logger: Any, plan: Any) -> bool:
    runtime = trt.Runtime(logger)
    engine = runtime.deserialize_cuda_engine(plan)
    return engine is not None and engine.create_execution_context() is not None
