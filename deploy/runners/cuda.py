"""What a runner needs of CUDA: memory, copies, a stream, graphs.

This is the boundary to the driver: nothing above it knows a CUDA function. It uses cuda-bindings,
which come with torch's CUDA wheels, so it needs neither PyTorch nor a compiler.
"""

import ctypes
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, NewType

import numpy as np
from numpy.typing import NDArray

from export.tensorrt.runtime import Gpu, checked, cuda_runtime, gpu_here

Bytes = NDArray[np.uint8]
Graph = NewType("Graph", object)


class Driver(ABC):
    """Memory and work on one GPU. Addresses are plain numbers."""

    @abstractmethod
    def gpu(self) -> Gpu:
        """The GPU. NotHereError if there is none."""

    @abstractmethod
    def allocate(self, size: int) -> int:
        """Allocate memory on the GPU."""

    @abstractmethod
    def free(self, address: int) -> None:
        """Free memory of the GPU."""

    @abstractmethod
    def allocate_pinned(self, size: int) -> Bytes:
        """Allocate memory of the host that the GPU reads and writes directly."""

    @abstractmethod
    def free_pinned(self, memory: Bytes) -> None:
        """Free pinned memory."""

    @abstractmethod
    def stream(self) -> int:
        """A new queue of work, which waits for no other."""

    @abstractmethod
    def free_stream(self, stream: int) -> None:
        """Free a stream."""

    @abstractmethod
    def to_device(self, address: int, memory: Bytes, stream: int) -> None:
        """Enqueue a copy from pinned memory to the GPU."""

    @abstractmethod
    def to_host(self, memory: Bytes, address: int, stream: int) -> None:
        """Enqueue a copy from the GPU into pinned memory."""

    @abstractmethod
    def wait(self, stream: int) -> None:
        """Wait until all enqueued work is done."""

    @abstractmethod
    def captured(self, work: Callable[[], None], stream: int) -> Graph:
        """Record what `work` enqueues, without running it."""

    @abstractmethod
    def launch(self, graph: Graph, stream: int) -> None:
        """Enqueue recorded work."""

    @abstractmethod
    def free_graph(self, graph: Graph) -> None:
        """Free a graph."""


class CudaDriver(Driver):
    """The first GPU that this process sees. CUDA_VISIBLE_DEVICES chooses another."""

    def __init__(self) -> None:
        self._cuda: Any = cuda_runtime()

    def gpu(self) -> Gpu:
        return gpu_here(0)

    def allocate(self, size: int) -> int:
        return int(self._call("cudaMalloc", size))

    def free(self, address: int) -> None:
        self._call("cudaFree", address)

    def allocate_pinned(self, size: int) -> Bytes:
        address = int(self._call("cudaMallocHost", size))
        return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))

    def free_pinned(self, memory: Bytes) -> None:
        self._call("cudaFreeHost", memory.ctypes.data)

    def stream(self) -> int:
        return int(self._call("cudaStreamCreateWithFlags", self._cuda.cudaStreamNonBlocking))

    def free_stream(self, stream: int) -> None:
        self._call("cudaStreamDestroy", stream)

    def to_device(self, address: int, memory: Bytes, stream: int) -> None:
        self._call("cudaMemcpyAsync", address, memory.ctypes.data, memory.nbytes, self._cuda.cudaMemcpyKind.cudaMemcpyHostToDevice, stream)

    def to_host(self, memory: Bytes, address: int, stream: int) -> None:
        self._call("cudaMemcpyAsync", memory.ctypes.data, address, memory.nbytes, self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost, stream)

    def wait(self, stream: int) -> None:
        self._call("cudaStreamSynchronize", stream)

    def captured(self, work: Callable[[], None], stream: int) -> Graph:
        # Thread-local, so that other threads may use CUDA during the capture.
        self._call("cudaStreamBeginCapture", stream, self._cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal)
        try:
            work()
        finally:
            recording = self._call("cudaStreamEndCapture", stream)
        graph = self._call("cudaGraphInstantiate", recording, 0)
        self._call("cudaGraphDestroy", recording)
        return Graph(graph)

    def launch(self, graph: Graph, stream: int) -> None:
        self._call("cudaGraphLaunch", graph, stream)

    def free_graph(self, graph: Graph) -> None:
        self._call("cudaGraphExecDestroy", graph)

    def _call(self, function: str, *arguments: object) -> Any:
        return checked(self._cuda, function, *arguments)
