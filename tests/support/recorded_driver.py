"""A recording fake of the driver: memory, copies and enqueueing, with every call noted.

It shows that a runner allocates, sets shapes, copies and cleans up as it should. It computes no
network, and shows nothing of what a GPU would compute.
"""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np

from deploy.runners.cuda import Bytes, Driver, Graph
from export.tensorrt.record import EngineRecord
from export.tensorrt.runtime import Gpu

GPU = Gpu("NVIDIA Recorded", "8.9", 2**30, "999.1", "13.0")


class RecordedDriver(Driver):
    """Device memory is a dictionary of arrays. Work runs at once, or is kept while captured."""

    def __init__(self, gpu: Gpu = GPU) -> None:
        self.the_gpu = gpu
        self.said: list[str] = []
        self.memory: dict[int, Bytes] = {}
        self.pinned: dict[int, Bytes] = {}
        self.streams: set[int] = set()
        self.graphs: dict[int, list[Callable[[], None]]] = {}
        self.capturing: list[Callable[[], None]] | None = None
        self.refuse_allocation_number: int | None = None
        self._next = 0x1000

    def _new(self) -> int:
        self._next += 0x100000
        return self._next

    def gpu(self) -> Gpu:
        return self.the_gpu

    def allocate(self, size: int) -> int:
        if self.refuse_allocation_number == len(self.memory) + len(self.pinned):
            raise MemoryError("recorded: no memory left")
        address = self._new()
        self.memory[address] = np.zeros(size, np.uint8)
        return address

    def free(self, address: int) -> None:
        del self.memory[address]

    def allocate_pinned(self, size: int) -> Bytes:
        memory = np.full(size, 0xCD, np.uint8)
        self.pinned[memory.ctypes.data] = memory
        return memory

    def free_pinned(self, memory: Bytes) -> None:
        del self.pinned[memory.ctypes.data]

    def stream(self) -> int:
        stream = self._new()
        self.streams.add(stream)
        return stream

    def free_stream(self, stream: int) -> None:
        self.streams.remove(stream)

    def enqueue(self, what: str, work: Callable[[], None], stream: int) -> None:
        assert stream in self.streams, "work on a stream that is not there"
        self.said.append(f"{'capture ' if self.capturing is not None else ''}{what}")
        if self.capturing is None:
            work()
        else:
            self.capturing.append(work)

    def to_device(self, address: int, memory: Bytes, stream: int) -> None:
        self.enqueue(f"in {memory.nbytes}", lambda: self._copy(self.memory[address], memory), stream)

    def to_host(self, memory: Bytes, address: int, stream: int) -> None:
        self.enqueue(f"out {memory.nbytes}", lambda: self._copy(memory, self.memory[address][: memory.nbytes]), stream)

    @staticmethod
    def _copy(target: Bytes, source: Bytes) -> None:
        target[: source.nbytes] = source

    def wait(self, stream: int) -> None:
        assert stream in self.streams
        assert self.capturing is None, "a graph cannot hold waiting"
        self.said.append("wait")

    def captured(self, work: Callable[[], None], stream: int) -> Graph:
        kept: list[Callable[[], None]] = []
        self.capturing = kept
        try:
            work()
        finally:
            self.capturing = None
        number = self._new()
        self.graphs[number] = kept
        return Graph(number)

    def launch(self, graph: Graph, stream: int) -> None:
        self.said.append("launch")
        for work in self.graphs[graph]:  # type: ignore[index]
            work()

    def free_graph(self, graph: Graph) -> None:
        del self.graphs[graph]  # type: ignore[arg-type]

    @property
    def all_given_back(self) -> bool:
        return not (self.memory or self.pinned or self.streams or self.graphs)


class RecordedContext:
    """Stands for an execution context.

    Its "network" writes the first pixel of each sample into all outputs of that sample.
    """

    def __init__(self, engine: "RecordedEngine") -> None:
        self.engine, self.shapes, self.addresses = engine, dict[str, tuple[int, ...]](), dict[str, int]()
        self.scratch: tuple[int, int] | None = None

    def set_device_memory(self, address: int, size: int) -> None:
        self.scratch = address, size

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        (given,) = self.engine.record.profile.values()
        self.shapes[name] = shape
        return given.least[0] <= shape[0] <= given.most[0] and list(shape[1:]) == given.least[1:]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        (image,) = self.shapes.values()
        (classes,) = self.engine.record.outputs[0].shape[1:]
        assert classes is not None
        return self.shapes.get(name, (image[0], classes + self.engine.extra_classes))

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return address in self.engine.driver.memory

    def infer_shapes(self) -> list[str]:
        return [] if self.shapes else ["image"]

    def execute_async_v3(self, stream: int) -> bool:
        driver = self.engine.driver
        assert self.scratch is not None
        assert self.scratch[1] >= self.engine.device_memory_size_v2
        shape = self.shapes["image"]
        driver.enqueue(f"run {shape[0]}", lambda: self._write(shape), stream)
        return self.engine.accepts_work

    def _write(self, shape: tuple[int, ...]) -> None:
        memory, size = self.engine.driver.memory, int(np.prod(shape[1:]))
        pixels = memory[self.addresses["image"]][: shape[0] * size].reshape(shape[0], size)[:, 0]
        (classes,) = self.engine.record.outputs[0].shape[1:]
        logits = np.repeat(pixels.astype(np.float32)[:, None], classes or 1, axis=1)
        memory[self.addresses["logits"]][: logits.nbytes] = logits.view(np.uint8).reshape(-1)


class RecordedEngine:
    """Stands for a deserialised engine. It states about itself what its record states."""

    def __init__(self, record: EngineRecord, driver: RecordedDriver) -> None:
        self.record, self.driver = record, driver
        self.device_memory_size_v2, self.extra_classes, self.accepts_work = 4096, 0, True
        self.tensors = [*record.inputs, *record.outputs]
        self.num_io_tensors = len(self.tensors)
        self.contexts: list[RecordedContext] = []
        self.configs: list[Any] = []

    def get_tensor_name(self, index: int) -> str:
        return self.tensors[index].name

    def get_tensor_mode(self, name: str) -> str:
        return "input" if name in [each.name for each in self.record.inputs] else "output"

    def get_tensor_dtype(self, name: str) -> str:
        return next(each.dtype for each in self.tensors if each.name == name)

    def get_tensor_shape(self, name: str) -> list[int]:
        return [-1 if size is None else size for size in next(each.shape for each in self.tensors if each.name == name)]

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[list[int]]:
        shapes = self.record.profile[name]
        return [shapes.least, shapes.best, shapes.most]

    def create_runtime_config(self) -> "RecordedConfig":
        return RecordedConfig()

    def create_execution_context(self, config: "RecordedConfig") -> RecordedContext:
        assert config.strategy == "user managed"
        self.configs.append(config)
        self.contexts.append(RecordedContext(self))
        return self.contexts[-1]


class RecordedConfig:
    """Stands for a runtime config."""

    strategy: str | None = None
    dynamic_shapes_kernel_specialization_strategy: str | None = None

    def set_execution_context_allocation_strategy(self, strategy: str) -> None:
        self.strategy = strategy


def recorded_tensorrt(name: str, version: str, engine: RecordedEngine | None) -> ModuleType:
    """A module in TensorRT's place, whose runtime returns this engine or refuses with a message."""
    module: Any = ModuleType(name)

    class Runtime:
        def __init__(self, logger: Any) -> None:
            self.logger, self.engine_host_code_allowed = logger, False

        def deserialize_cuda_engine(self, plan: bytes) -> RecordedEngine | None:
            module.deserialised.append(plan)
            if engine is None:
                self.logger.log(Severity("ERROR"), "recorded: not for this machine")
            return engine

    class Severity:
        def __init__(self, name: str) -> None:
            self.name = name

    class ILogger:
        pass

    module.__version__, module.Runtime, module.ILogger, module.deserialised = version, Runtime, ILogger, []
    module.TensorIOMode = Members(INPUT="input", OUTPUT="output")
    module.ExecutionContextAllocationStrategy = Members(USER_MANAGED="user managed")
    module.DynamicShapesKernelSpecializationStrategy = Members(EAGER="eager")
    module.nptype = lambda dtype: np.dtype(dtype).type
    return module


class Members:
    """An enumeration's members."""

    def __init__(self, **members: str) -> None:
        vars(self).update(members)
