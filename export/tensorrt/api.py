"""The part of TensorRT's Python classes that this project uses, as types.

It holds for `tensorrt` and for `tensorrt_rtx`. mypy keeps the code to these names; a test finds
each of them on the classes of both modules.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol


class Logger(Protocol):
    """ILogger, which is subclassed."""

    def log(self, severity: Any, text: str) -> None: ...


class ProgressMonitor(Protocol):
    """IProgressMonitor, which is subclassed."""

    def phase_start(self, phase: str, parent: str | None, steps: int) -> None: ...
    def step_complete(self, phase: str, step: int) -> bool: ...
    def phase_finish(self, phase: str) -> None: ...


class HostMemory(Protocol):
    """IHostMemory: bytes that TensorRT allocated."""

    nbytes: int

    def __buffer__(self, flags: int, /) -> memoryview: ...


class Tensor(Protocol):
    """ITensor."""

    name: str
    shape: Sequence[int]
    dtype: Any


class Network(Protocol):
    """INetworkDefinition."""

    num_inputs: int
    num_outputs: int

    def get_input(self, index: int) -> Tensor: ...
    def get_output(self, index: int) -> Tensor: ...


class ParserError(Protocol):
    """ParserError."""

    def desc(self) -> str: ...
    def node(self) -> int: ...
    def node_name(self) -> str: ...
    def node_operator(self) -> str: ...


class OnnxParser(Protocol):
    """OnnxParser."""

    num_errors: int

    def parse(self, model: bytes) -> bool: ...
    def get_error(self, index: int) -> ParserError: ...


class OptimizationProfile(Protocol):
    """IOptimizationProfile."""

    def set_shape(self, name: str, least: tuple[int, ...], best: tuple[int, ...], most: tuple[int, ...]) -> None: ...
    def get_shape(self, name: str) -> Sequence[Sequence[int]]: ...


class TimingCache(Protocol):
    """ITimingCache."""

    def serialize(self) -> HostMemory: ...


class BuilderConfig(Protocol):
    """IBuilderConfig."""

    progress_monitor: Any
    profiling_verbosity: Any
    hardware_compatibility_level: Any

    def set_flag(self, flag: object) -> None: ...
    def clear_flag(self, flag: object) -> None: ...
    def get_flag(self, flag: object) -> bool: ...
    def set_tactic_sources(self, sources: int) -> bool: ...
    def get_tactic_sources(self) -> int: ...
    def set_memory_pool_limit(self, pool: object, size: int) -> None: ...
    def add_optimization_profile(self, profile: OptimizationProfile) -> int: ...
    def create_timing_cache(self, content: bytes) -> TimingCache | None: ...
    def set_timing_cache(self, cache: TimingCache, ignore_mismatch: bool) -> bool: ...
    def get_timing_cache(self) -> TimingCache | None: ...


class Builder(Protocol):
    """Builder."""

    def create_network(self) -> Network: ...
    def create_builder_config(self) -> BuilderConfig: ...
    def create_optimization_profile(self) -> OptimizationProfile: ...
    def build_serialized_network(self, network: Network, config: BuilderConfig) -> HostMemory | None: ...


class EngineInspector(Protocol):
    """EngineInspector."""

    def get_engine_information(self, form: object) -> str: ...


class RuntimeConfig(Protocol):
    """IRuntimeConfig."""

    def set_execution_context_allocation_strategy(self, strategy: object) -> None: ...


class RuntimeConfigOfRtx(RuntimeConfig, Protocol):
    """IRuntimeConfig of TensorRT-RTX alone."""

    dynamic_shapes_kernel_specialization_strategy: Any


class ExecutionContext(Protocol):
    """IExecutionContext."""

    def set_device_memory(self, address: int, size: int) -> None: ...

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool: ...
    def get_tensor_shape(self, name: str) -> Sequence[int]: ...
    def set_tensor_address(self, name: str, address: int) -> bool: ...
    def infer_shapes(self) -> Sequence[str]: ...
    def execute_async_v3(self, stream: int) -> bool: ...


class Engine(Protocol):
    """ICudaEngine."""

    num_io_tensors: int
    device_memory_size_v2: int

    def get_tensor_name(self, index: int) -> str: ...
    def get_tensor_mode(self, name: str) -> Any: ...
    def get_tensor_dtype(self, name: str) -> Any: ...
    def get_tensor_shape(self, name: str) -> Sequence[int]: ...
    def get_tensor_profile_shape(self, name: str, profile: int) -> Sequence[Sequence[int]]: ...
    def create_runtime_config(self) -> RuntimeConfig: ...
    def create_execution_context(self, config: RuntimeConfig) -> ExecutionContext | None: ...
    def create_engine_inspector(self) -> EngineInspector: ...


class Runtime(Protocol):
    """Runtime."""

    engine_host_code_allowed: bool

    def deserialize_cuda_engine(self, plan: bytes) -> Engine | None: ...


class Members(Protocol):
    """What every enumeration of TensorRT has."""

    __members__: dict[str, Any]


class BuilderFlag(Members, Protocol):
    """BuilderFlag."""

    TF32: Any
    EDITABLE_TIMING_CACHE: Any
    ERROR_ON_TIMING_CACHE_MISS: Any
    DISTRIBUTIVE_INDEPENDENCE: Any
    VERSION_COMPATIBLE: Any
    EXCLUDE_LEAN_RUNTIME: Any


class TacticSource(Members, Protocol):
    """TacticSource."""

    EDGE_MASK_CONVOLUTIONS: Any
    JIT_CONVOLUTIONS: Any


class HardwareCompatibilityLevel(Protocol):
    """HardwareCompatibilityLevel."""

    NONE: Any
    SAME_COMPUTE_CAPABILITY: Any
    AMPERE_PLUS: Any


class ProfilingVerbosity(Protocol):
    """ProfilingVerbosity."""

    DETAILED: Any


class MemoryPoolType(Protocol):
    """MemoryPoolType."""

    WORKSPACE: Any


class LayerInformationFormat(Protocol):
    """LayerInformationFormat."""

    JSON: Any


class TensorIOMode(Protocol):
    """TensorIOMode."""

    INPUT: Any


class AllocationStrategy(Protocol):
    """ExecutionContextAllocationStrategy."""

    USER_MANAGED: Any


class SpecialisationOfRtx(Protocol):
    """DynamicShapesKernelSpecializationStrategy of TensorRT-RTX alone."""

    EAGER: Any


class TensorRt(Protocol):
    """The module."""

    __version__: str
    ILogger: type
    IProgressMonitor: type
    BuilderFlag: BuilderFlag
    TacticSource: TacticSource
    HardwareCompatibilityLevel: HardwareCompatibilityLevel
    ProfilingVerbosity: ProfilingVerbosity
    MemoryPoolType: MemoryPoolType
    LayerInformationFormat: LayerInformationFormat
    TensorIOMode: TensorIOMode
    ExecutionContextAllocationStrategy: AllocationStrategy
    Builder: Callable[[Any], Builder]
    OnnxParser: Callable[[Network, Any], OnnxParser]
    Runtime: Callable[[Any], Runtime]
    nptype: Callable[[Any], Any]


class TensorRtRtx(TensorRt, Protocol):
    """The module of TensorRT-RTX."""

    DynamicShapesKernelSpecializationStrategy: SpecialisationOfRtx
