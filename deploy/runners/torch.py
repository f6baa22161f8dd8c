"""Runs a PyTorch module as it is, whole or up to a node. The caller has set its mode.

Takes a module and the names of its inputs and outputs. Computes in true float32 (no TF32, no
autocast) or in float64.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import ml_dtypes
import numpy as np
import torch
from torch import fx, nn

from deploy.runners.forms import Form, torch_choices
from deploy.runners.runner import Array, Point, Runner, TensorSpec
from deploy.runners.runtimes import TORCH
from export.errors import NotHereError

TorchPrecision = Literal["float32", "float64"]


class TorchRunner(Runner):
    """A module on the CPU or a CUDA device. The caller's own module is not moved or converted."""

    def __init__(
        self,
        module: nn.Module,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        *,
        name: str = "torch",
        device: str = "cpu",
        precision: TorchPrecision = "float32",
        gradients: bool = False,
        threads: int = 0,
        channels_last: bool = False,
        plain_sums: bool = False,
    ) -> None:
        """Prepare the module.

        `threads` of 0 leaves their number unchanged. `channels_last` keeps images and filters in
        that memory layout. `plain_sums` switches cuDNN off on CUDA, because it may pick Winograd or
        FFT: these transform both factors, and no grid survives that.
        """
        self.name = name
        self.inputs = tuple(inputs)
        self.outputs = tuple(_in_precision(spec, precision) for spec in outputs)
        self._device = available_device(device)
        self._precision = precision
        self._gradients = gradients
        self._threads = threads
        self._cudnn = torch.backends.cudnn.enabled and not plain_sums
        self._format = torch.channels_last if channels_last else torch.contiguous_format
        self._module: nn.Module | None = _placed(module, self._device, precision)
        if channels_last:
            self._module = copy.deepcopy(self._module).to(memory_format=torch.channels_last)

    @property
    def facts(self) -> Mapping[str, object]:
        with _true_float32(cudnn=self._cudnn):
            flags = _arithmetic_flags()
        return {
            "runtime": "torch",
            "version": torch.__version__,
            "device": _device_name(self._device),
            "cuda": torch.version.cuda if self._device.type == "cuda" else None,
            "precision": self._precision,
            "gradients": self._gradients,
            "training_mode": self._module is not None and self._module.training,
            "threads": self._threads or torch.get_num_threads(),
            "memory_format": str(self._format).removeprefix("torch."),
            "flags": flags,
        }

    def close(self) -> None:
        self._module = None

    def _run(self, batch: Mapping[str, Array]) -> dict[str, Array]:
        if self._module is None:
            raise RuntimeError(f"{self.name} is closed")
        tensors = [self._tensor(batch[spec.name]) for spec in self.inputs]
        autocast_off = torch.autocast(self._device.type, enabled=False)
        kept = _default_type(torch.float64 if self._precision == "float64" else torch.float32)
        with _true_float32(cudnn=self._cudnn), kept, autocast_off, _num_threads(self._threads), self._gradient_mode():
            results = self._module(*tensors)
        values = (results,) if isinstance(results, torch.Tensor) else tuple(results)
        return {spec.name: _array(value) for spec, value in zip(self.outputs, values, strict=True)}

    def _tensor(self, array: Array) -> torch.Tensor:
        tensor = _copied(array).to(self._device)
        if self._precision == "float64" and tensor.is_floating_point():
            tensor = tensor.double()
        return tensor.contiguous(memory_format=self._format) if tensor.ndim == 4 else tensor

    def _gradient_mode(self) -> AbstractContextManager[object]:
        return torch.enable_grad() if self._gradients else torch.inference_mode()


@dataclass(frozen=True, kw_only=True)
class GraphForm(Form):
    """A traced graph as PyTorch runs it, in true float32 or in float64."""

    runtime: str = TORCH
    name: str
    module: fx.GraphModule
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    gradients: bool = False
    plain_sums: bool = False
    """Whether to keep PyTorch from algorithms that do not add up the products as they are.

    See `TorchRunner`.
    """
    exported: Callable[[fx.GraphModule], Form] | None = None
    """Makes the exporter's program of the graph. Its inner tensors have the names in the file."""

    def open(self) -> Runner:
        return self.runner(self.module, self.outputs, self.name)

    def runner(self, module: nn.Module, outputs: tuple[TensorSpec, ...], name: str) -> TorchRunner:
        """Run a module that takes what the graph takes, in the way the graph is run."""
        return TorchRunner(
            module,
            self.inputs,
            outputs,
            name=name,
            device=self.device,
            precision="float64" if self.precision == "float64" else "float32",
            gradients=self.gradients,
            threads=self.options.threads,
            channels_last=self.options.channels_last,
            plain_sums=self.plain_sums,
        )

    def float64(self) -> Form:
        return replace(self, device="cpu", precision="float64", gradients=False, plain_sums=False, choices=())

    @property
    def points(self) -> Sequence[Point]:
        return points_of(self.module)

    def until(self, point: str, batch: Mapping[str, Array]) -> Runner:
        return _opened_until(self, point, batch)

    def named_like(self, other: Form) -> Form:
        if isinstance(other, GraphForm) or self.exported is None:
            return self
        program = self.exported(self.module)
        return program.float64() or program if self.precision == "float64" else program


def graph_form(name: str, module: fx.GraphModule, ends: tuple[TensorSpec, TensorSpec], device: str, *, gradients: bool = False) -> GraphForm:
    """A graph of one input and one output on a device."""
    return GraphForm(name=name, module=module, inputs=ends[:1], outputs=ends[1:], device=device, gradients=gradients, choices=torch_choices(device))


def available_device(name: str) -> torch.device:
    """The device of that name. NotHereError if it cannot be used."""
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise NotHereError(f"device {name!r} was requested, but torch {torch.__version__} finds no CUDA device; use 'cpu'")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise NotHereError(f"device {name!r} was requested, but there are only {torch.cuda.device_count()}, counted from cuda:0")
    return device


def _in_precision(spec: TensorSpec, precision: TorchPrecision) -> TensorSpec:
    return replace(spec, dtype=precision) if precision == "float64" and spec.dtype in ("float16", "bfloat16", "float32") else spec


def _placed(module: nn.Module, device: torch.device, precision: TorchPrecision) -> nn.Module:
    tensors = [*module.parameters(), *module.buffers()]
    stays = all(tensor.device.type == device.type for tensor in tensors)
    if stays and precision == "float32":
        return module
    module = copy.deepcopy(module).to(device)
    return module.double() if precision == "float64" else module


def _copied(array: Array) -> torch.Tensor:
    """A copy, because torch would warn about memory that is read-only."""
    array = np.array(array, order="C")
    if array.dtype.name == "bfloat16":  # torch does not read this type of ml_dtypes, but it reads the bits
        return torch.tensor(array.view(np.int16)).view(torch.bfloat16)
    return torch.tensor(array)


def _array(tensor: torch.Tensor) -> Array:
    tensor = tensor.detach().cpu()
    if tensor.dtype == torch.bfloat16:  # NumPy has no such type of its own, but it can hold the bits
        bits: Array = tensor.contiguous().view(torch.int16).numpy()
        return bits.copy().view(ml_dtypes.bfloat16)
    array: Array = tensor.numpy()
    return array.copy()


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


@contextmanager
def _default_type(dtype: torch.dtype) -> Iterator[None]:
    """Set the type that integers become when they are divided, for as long as this lasts."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def _num_threads(number: int) -> Iterator[None]:
    """Use this many threads within an operation for as long as this lasts. 0 changes nothing."""
    before = torch.get_num_threads()
    torch.set_num_threads(number or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _true_float32(*, cudnn: bool) -> Iterator[None]:
    """Float32 products and repeatable algorithms, whatever the rest of the process has set."""
    now = torch.backends.cudnn
    before = [part.fp32_precision for part in _products().values()], (now.enabled, now.benchmark, now.deterministic)
    _set_arithmetic(["ieee"] * len(before[0]), (cudnn, False, True))
    try:
        yield
    finally:
        _set_arithmetic(*before)


def _set_arithmetic(precisions: Sequence[str], cudnn: tuple[bool, bool, bool]) -> None:
    for part, precision in zip(_products().values(), precisions, strict=True):
        part.fp32_precision = precision
    torch.backends.cudnn.enabled, torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = cudnn


def _arithmetic_flags() -> dict[str, object]:
    return {
        "float32_products": {name: part.fp32_precision for name, part in _products().items()},
        "cudnn": torch.backends.cudnn.enabled,
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
        "cudnn_deterministic": torch.backends.cudnn.deterministic,
        "autocast": False,
    }


def _products() -> dict[str, Any]:
    """Everything that may multiply float32 numbers in another precision (TF32, bfloat16)."""
    backends: Any = torch.backends  # its stubs lack these parts
    return {
        "cuda.matmul": backends.cuda.matmul,
        "cudnn.conv": backends.cudnn.conv,
        "cudnn.rnn": backends.cudnn.rnn,
        "mkldnn.conv": backends.mkldnn.conv,
        "mkldnn.matmul": backends.mkldnn.matmul,
        "mkldnn.rnn": backends.mkldnn.rnn,
    }


def points_of(module: fx.GraphModule) -> tuple[Point, ...]:
    """Everything that a node computes, in order."""
    return tuple(_points(module))


def _opened_until(form: "GraphForm", name: str, batch: Mapping[str, Array]) -> TorchRunner:
    """A graph up to a node, whose result becomes the only output.

    ValueError if the result is not a tensor.
    """
    prefix = _prefix(form.module, name)
    arguments = [torch.tensor(batch[spec.name]).to(form.device) for spec in form.inputs]
    with torch.inference_mode():
        (found,) = prefix(*arguments)
    if not isinstance(found, torch.Tensor):
        raise ValueError(f"{name} is not a tensor")
    output = TensorSpec(name, str(found.dtype).removeprefix("torch."), (None, *found.shape[1:]) if found.ndim else ())
    return form.runner(prefix, (output,), f"{name} of the graph")


def _prefix(module: fx.GraphModule, name: str) -> fx.GraphModule:
    graph = fx.Graph()
    kept: dict[fx.Node, fx.Node] = {}
    for node in module.graph.nodes:
        kept[node] = graph.node_copy(node, lambda other: kept[other])
        if node.name == name:
            graph.output((kept[node],))
            return fx.GraphModule(module, graph)
    raise ValueError(f"the graph has no node {name!r}")


def _points(module: fx.GraphModule) -> Iterator[Point]:
    computed: set[fx.Node] = set()
    for node in module.graph.nodes:
        if node.op in ("call_module", "call_function", "call_method"):
            inputs = tuple(each.name for each in node.all_input_nodes if each in computed)
            computed.add(node)
            yield Point(node.name, _operation(module, node), inputs, str(node.target) if node.op == "call_module" else "")


def _operation(module: fx.GraphModule, node: fx.Node) -> str:
    if node.op == "call_module":
        return type(module.get_submodule(str(node.target))).__name__
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
