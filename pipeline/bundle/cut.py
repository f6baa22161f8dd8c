"""How the stages of a bundle's chains are cut at inner tensors, to find where a link begins to fail.

Takes graphs and files. Graphs are cut by their nodes; an ONNX file by its tensors, which have the names of the exported program's.
"""

import copy
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import onnx
from torch.fx import GraphModule

from deploy.compare.bits import Arrays
from deploy.runners.base import Runner, TensorSpec
from deploy.runners.onnx_file import checked_bytes
from deploy.runners.onnx_file import cut_at as model_until
from deploy.runners.onnx_file import points_of as points_of_model
from deploy.runners.pt2 import Program, from_exported, in_float64
from deploy.runners.pt2 import cut_at as program_until
from deploy.runners.table import RunOptions, open_file
from deploy.runners.torch import TorchRunner, open_until
from deploy.runners.torch import points_of as points_of_graph
from deploy.verify.cuts import Cut, CutPlaces
from deploy.verify.place import Pairing, Places, paired, pairings_of
from deploy.verify.verdict import Requirement
from export.onnx import program_of

Cutting = Callable[[Arrays], Places]
_DEQUANTISED = "_float"
"""What the exact writer appends to the name of a node whose bytes it turns back into numbers."""


@dataclass(frozen=True)
class Graph:
    """A graph as PyTorch runs it."""

    module: GraphModule
    device: str
    input: TensorSpec
    gradients: bool = False
    plain_sums: bool = False

    def cut(self, batch: Arrays) -> Cut:
        def opened(pairing: Pairing) -> Runner:
            return open_until(
                self.module, pairing.before, (self.input,), batch, device=self.device, gradients=self.gradients, plain_sums=self.plain_sums
            )

        return Cut(open=opened, output=lambda pairing: pairing.before)


@dataclass(frozen=True)
class File:
    """An ONNX file in a runtime."""

    path: Path
    runtime: str
    options: RunOptions

    @cached_property
    def model(self) -> onnx.ModelProto:
        return onnx.load_model_from_string(checked_bytes(self.path))

    def cut(self) -> Cut:
        def opened(pairing: Pairing) -> Runner:
            with tempfile.NamedTemporaryFile(suffix=".onnx") as prefix:
                Path(prefix.name).write_bytes(model_until(self.model, pairing.point.name).SerializeToString())
                return open_file(self.runtime, Path(prefix.name), self.options)

        return Cut(open=opened, output=lambda pairing: pairing.point.name)


@dataclass(frozen=True)
class ExportedProgramCut:
    """A folded graph as the program that the exporter makes of it; its names are those in the file."""

    module: GraphModule
    image_shape: tuple[int, int, int]

    @cached_property
    def program(self) -> Program:
        return from_exported(program_of(copy.deepcopy(self.module).cpu(), self.image_shape))

    def cut(self, *, float64: bool = False) -> Cut:
        whole = in_float64(self.program) if float64 else self.program

        def opened(pairing: Pairing) -> Runner:
            prefix = program_until(whole, pairing.before)
            return TorchRunner(prefix.module, prefix.inputs, prefix.outputs, precision="float64" if float64 else "float32")

        return Cut(open=opened, precision="float64" if float64 else "float32", output=lambda pairing: pairing.before)


def between_graphs(before: Graph, after: Graph) -> Cutting:
    """The same nodes, to the bit."""

    def places(batch: Arrays) -> Places:
        found = paired(points_of_graph(before.module), points_of_graph(after.module))
        return CutPlaces(found=found, batch=batch, before=before.cut(batch), after=after.cut(batch), required="bitwise")

    return places


def graph_to_file(trained: ExportedProgramCut, stored: ExportedProgramCut, file: File) -> Cutting:
    """A folded graph and the file that was exported of it, within the budget that the trained weights give."""

    def places(batch: Arrays) -> Places:
        found = paired(trained.program.points, points_of_model(file.model))
        return _with_budget(trained, batch, found, stored.cut(), file)

    return places


def file_to_runtime(trained: ExportedProgramCut, plain: File, other: File) -> Cutting:
    """One file in two ways, within the same budget."""

    def places(batch: Arrays) -> Places:
        found = paired(trained.program.points, points_of_model(other.model))
        return _with_budget(trained, batch, found, plain.cut(), other)

    return places


def exact_graph_to_file(graph: Graph, file: File) -> Cutting:
    """The graph on the grid and its file, to the bit, wherever the file holds numbers."""

    def places(batch: Arrays) -> Places:
        nodes = {point.name for point in points_of_graph(graph.module)}
        points = points_of_model(file.model)
        numbers = {point.name.removesuffix(_DEQUANTISED): point.name for point in points}  # of bytes and their numbers the latter, which come later
        found = pairings_of(points, {name: node for node, name in numbers.items() if node in nodes})
        return CutPlaces(found=found, batch=batch, before=graph.cut(batch), after=file.cut(), required="bitwise")

    return places


def between_files(before: File, after: File, required: Requirement = "bitwise") -> Cutting:
    """Two files, or one in two ways, whose tensors have the same names."""

    def places(batch: Arrays) -> Places:
        found = paired(points_of_model(before.model), points_of_model(after.model))
        return CutPlaces(found=found, batch=batch, before=before.cut(), after=after.cut(), required=required)

    return places


def _with_budget(trained: ExportedProgramCut, batch: Arrays, found: list[Pairing], before: Cut, after: File) -> Places:
    return CutPlaces(
        found=found, batch=batch, before=before, after=after.cut(), source=trained.cut(), float64=trained.cut(float64=True), required="budget"
    )
