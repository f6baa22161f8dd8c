"""Runs a torch.export program (.pt2), whole or up to an inner tensor, as it is or in float64.

Takes a path. The file is examined before torch loads it (`pt2_file`). Its guards, which are source
text, are never built.
"""

import copy
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import fx
from torch.export import ExportedProgram
from torch.fx.node import map_aggregate

from deploy.runners.forms import Form
from deploy.runners.pt2_file import require_harmless
from deploy.runners.runner import Array, Point, Runner, TensorSpec
from deploy.runners.runtimes import RUNTIMES, TORCH, Choice
from deploy.runners.torch import TorchRunner
from export.errors import DamagedError, UsageError

_NUMPY_NAMES = {
    getattr(torch, name): name
    for name in ("float16", "bfloat16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "bool")
}
_CHECKS = ("aten._assert_tensor_metadata.default", "aten._assert_scalar.default", "aten.sym_constrain_range_for_size.default")
"""What a program asserts of its own dtypes and sizes. In float64 the dtypes would not hold."""


@dataclass(frozen=True)
class Program:
    """A program as a module of plain arguments: its inputs in order, and a tuple of its outputs."""

    module: fx.GraphModule
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    @property
    def dtypes(self) -> frozenset[str]:
        """The dtypes of everything that is computed."""
        values = [value for node in self.module.graph.nodes for value in _tensors(node.meta.get("val"))]
        return frozenset(_NUMPY_NAMES.get(value.dtype, str(value.dtype)) for value in values)

    @property
    def points(self) -> tuple[Point, ...]:
        """Every tensor that an operation computes, in order."""
        return tuple(_points(self.module.graph))


def load_program(path: Path) -> Program:
    """Read a program from its file."""
    require_harmless(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return from_exported(torch.export.load(path))
    except (RuntimeError, ValueError, TypeError, KeyError, AttributeError, AssertionError, LookupError) as error:
        text = " ".join(str(error).split())[:200]
        raise DamagedError(f"{path} cannot be loaded by torch {torch.__version__}: {type(error).__name__}: {text}; export it again") from error


def from_exported(program: ExportedProgram) -> Program:
    """The module of a program in memory."""
    module = program.module(check_guards=False)  # guards are source text, which would be compiled
    assert isinstance(module, fx.GraphModule)
    # Take plain arguments and return a tuple, instead of the structures of the exported module.
    module.graph.set_codegen(fx.graph.CodeGen())
    (output,) = module.graph.find_nodes(op="output")
    module.graph.output(tuple(torch.utils._pytree.tree_leaves(output.args)))
    module.graph.erase_node(output)
    module.recompile()
    signature = program.graph_signature
    values = {node.name: node.meta.get("val") for node in program.graph.nodes}
    inputs = tuple(_spec(str(name), values.get(str(name))) for name in signature.user_inputs)
    ranges = {str(symbol): (_bound(limits.lower, 0), _bound(limits.upper, math.inf)) for symbol, limits in program.range_constraints.items()}
    _check_sizes_alone(module, inputs, ranges)
    return Program(module, inputs, tuple(_spec(str(name), values.get(str(name))) for name in signature.user_outputs))


def _check_sizes_alone(module: fx.GraphModule, inputs: tuple[TensorSpec, ...], ranges: dict[str, tuple[float, float]]) -> None:
    """Check the sizes of the inputs.

    This replaces the exporter's own check, which wants arguments in their original structure.
    """

    def check(called: object, arguments: tuple[torch.Tensor, ...]) -> None:
        for spec, tensor in zip(inputs, arguments, strict=True):
            for size, got in zip(spec.shape, tensor.shape, strict=True):
                low, high = ranges.get(str(size), (0, math.inf))
                if not low <= got <= high:
                    raise UsageError(f"{spec}: the program was exported for a {size} of {low:g} to {high:g}, got {got}")

    module._forward_pre_hooks.clear()
    module._forward_pre_hooks_with_kwargs.clear()
    module.register_forward_pre_hook(check)


def _bound(value: Any, otherwise: float) -> float:
    return float(value) if value.is_Integer else otherwise


def cut_at(program: Program, name: str) -> Program:
    """The program up to one of its tensors, which becomes the only output. Weights are shared."""
    graph = fx.Graph()
    kept: dict[str, fx.Node] = {}
    for node in program.module.graph.nodes:
        kept[node.name] = graph.node_copy(node, lambda other: kept[other.name])
        if node.name == name:
            break
    for node in program.module.graph.find_nodes(op="placeholder"):
        if node.name not in kept:
            graph.node_copy(node)
    if name not in kept:
        raise UsageError(f"the program has no tensor {name!r}")
    graph.output((kept[name],))
    point = _spec(name, kept[name].meta.get("val"))
    return Program(fx.GraphModule(program.module, graph), program.inputs, (point,))


def in_float64(program: Program) -> Program:
    """The same program with every float in it as float64. The caller widens the inputs."""
    module = copy.deepcopy(program.module).double()
    for inner in module.modules():
        if isinstance(inner, fx.GraphModule):
            _widen(inner)
    return Program(module, program.inputs, tuple(map(_wide, program.outputs)))


def _widen(module: fx.GraphModule) -> None:
    for node in list(module.graph.nodes):
        if str(node.target) in _CHECKS:
            module.graph.erase_node(node)
            continue
        node.args, node.kwargs = map_aggregate(node.args, _wide_type), map_aggregate(node.kwargs, _wide_type)
        if node.op == "get_attr":
            owner, _, name = str(node.target).rpartition(".")
            constant = getattr(module.get_submodule(owner), name)
            if isinstance(constant, torch.Tensor) and constant.is_floating_point() and constant.dtype != torch.float64:
                setattr(module.get_submodule(owner), name, constant.double())
    module.recompile()


def _wide_type(value: Any) -> Any:
    return torch.float64 if isinstance(value, torch.dtype) and value.is_floating_point else value


def _wide(spec: TensorSpec) -> TensorSpec:
    return TensorSpec(spec.name, "float64" if np.dtype(spec.dtype).kind == "f" or spec.dtype == "bfloat16" else spec.dtype, spec.shape)


def _spec(name: str, value: object) -> TensorSpec:
    if not isinstance(value, torch.Tensor) or value.dtype not in _NUMPY_NAMES:
        raise UsageError(f"{name} of the program is {type(value).__name__}, expected a tensor of numbers; export it with tensors in and out")
    return TensorSpec(name, _NUMPY_NAMES[value.dtype], tuple(size if isinstance(size, int) else str(size) for size in value.shape))


def _points(graph: fx.Graph) -> Iterator[Point]:
    made: dict[fx.Node, tuple[str, ...]] = {}
    for node in graph.nodes:
        before = tuple(dict.fromkeys(name for each in node.all_input_nodes for name in made.get(each, ())))
        value = node.meta.get("val")
        if node.op == "call_function" and isinstance(value, torch.Tensor):
            yield Point(node.name, _operation(node), before, _layer(node))
            made[node] = (node.name,)
        else:
            made[node] = before


def _operation(node: fx.Node) -> str:
    return str(node.target).removeprefix("aten.").partition(".")[0]


def _layer(node: fx.Node) -> str:
    """The innermost module that a node belongs to."""
    stack = node.meta.get("nn_module_stack") or {}
    path = next((str(value[0]) for value in reversed(stack.values())), "")
    return path.removeprefix("L['self'].").removeprefix("L__self__.")


def _tensors(value: object) -> Iterator[torch.Tensor]:
    for leaf in torch.utils._pytree.tree_leaves(value):
        if isinstance(leaf, torch.Tensor):
            yield leaf


@dataclass(frozen=True, kw_only=True)
class ProgramForm(Form):
    """A torch.export program, on the CPU."""

    runtime: str = TORCH
    choices: tuple[Choice, ...] = RUNTIMES[TORCH].choices
    program: Program

    def open(self) -> Runner:
        return self._runner(self.program)

    def float64(self) -> Form:
        return replace(self, precision="float64", program=in_float64(self.program))

    @property
    def points(self) -> Sequence[Point]:
        return self.program.points

    def until(self, point: str, batch: Mapping[str, Array]) -> Runner:
        return self._runner(cut_at(self.program, point))

    def _runner(self, program: Program) -> TorchRunner:
        return TorchRunner(
            program.module,
            program.inputs,
            program.outputs,
            name="torch.export program",
            precision="float64" if self.precision == "float64" else "float32",
            threads=self.options.threads,
            channels_last=self.options.channels_last,
        )
