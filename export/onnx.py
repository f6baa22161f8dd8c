"""Writes a folded graph as an ONNX file: opset 20, IR 10, raw pixels in, plain layers only.

Takes a folded graph and the facts to write into the file; returns the bytes of one file.
The same graph gives the same bytes.
"""

import ast
import contextlib
import copy
import io
import logging
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping

import onnx
import onnx_ir as ir
import torch
from torch import nn
from torch.fx import GraphModule

from export.graph.layers import not_foldable_parts
from export.graph.operations import plain_operators
from export.interruption import interruptible

OPSET = 20
IR_VERSION = 10
INPUT, OUTPUT = "image", "logits"
LAYER = "layer"
"""The one note that every node keeps: the module of the network that it belongs to."""
_SCOPES = "pkg.torch.onnx.name_scopes"
_FREE_BATCH = ({0: torch.export.Dim("batch", min=1)},)


def onnx_from_graph(folded: GraphModule, image_shape: tuple[int, int, int], metadata: Mapping[str, str]) -> bytes:
    """The folded graph as an ONNX file with a dynamic batch."""
    program = _exported(_written_out(folded), image_shape)
    _strip_traces_of_the_machine(program)
    program.metadata_props.update(sorted(metadata.items()))
    program.ir_version = IR_VERSION
    proto = ir.to_proto(program)
    onnx.checker.check_model(proto, full_check=True)
    require_folded_form(proto, operations_beyond_plain(folded))
    return proto.SerializeToString(deterministic=True)


def _written_out(folded: GraphModule) -> GraphModule:
    """A copy whose unfoldable layers are written in operations that a file can hold."""
    copied = copy.deepcopy(folded)
    for name, part in not_foldable_parts(copied).items():
        copied.set_submodule(name, part.written_out())
    return copied


def program_of(folded: GraphModule, image_shape: tuple[int, int, int]) -> torch.export.ExportedProgram:
    """The program that the exporter makes of a folded graph.

    Its nodes have the names of the tensors in the file.
    """
    with _quiet(), interruptible():
        return torch.export.export(_written_out(folded), (_example(folded, image_shape),), dynamic_shapes=_FREE_BATCH)


def _example(folded: GraphModule, image_shape: tuple[int, int, int]) -> torch.Tensor:
    # Two samples, because torch.export takes a size of 0 or 1 for a constant.
    return torch.zeros((2, *image_shape), dtype=torch.uint8, device=_device(folded))


def _exported(folded: GraphModule, image_shape: tuple[int, int, int]) -> ir.Model:
    with _quiet(), interruptible():
        program = torch.onnx.export(
            folded,
            (_example(folded, image_shape),),
            dynamo=True,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=_FREE_BATCH,
            external_data=False,
            verbose=False,
        )
    assert program is not None
    return program.model


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hide the exporter's progress and deprecation notes from the user. Its errors are raised."""
    level = logging.getLogger("torch.onnx").level
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        try:
            yield
        finally:
            logging.getLogger("torch.onnx").setLevel(level)


def _device(folded: GraphModule) -> torch.device:
    return next(folded.buffers()).device


def _strip_traces_of_the_machine(program: ir.Model) -> None:
    """Remove the source paths and stack traces that the exporter notes on every node and value.

    Of these notes only a node's place in the network stays.
    """
    program.producer_name, program.producer_version = "samegraph", None
    program.doc_string = None
    program.metadata_props.clear()
    graph = program.graph
    graph.name = "main"
    graph.doc_string = None
    graph.metadata_props.clear()
    for value in [*graph.inputs, *graph.outputs, *graph.initializers.values()]:
        value.metadata_props.clear()
    for node in ir.traversal.RecursiveGraphIterator(graph):
        layer = _layer(node)
        node.metadata_props.clear()
        if layer:
            node.metadata_props[LAYER] = layer
        node.doc_string = None
        for output in node.outputs:
            output.metadata_props.clear()


def _layer(node: ir.Node) -> str:
    """The innermost module whose code the node came from. The last scope is the node itself."""
    scopes = ast.literal_eval(node.metadata_props.get(_SCOPES, "[]"))
    return str(scopes[-2]) if len(scopes) > 1 else ""


class NotFoldedError(Exception):
    """The form of an ONNX graph is one that a folded network cannot have."""


def operations_beyond_plain(graph: nn.Module) -> Counter[str]:
    """The operations besides plain layers that the file of this very graph may hold.

    Each layer that cannot be folded states what it becomes.
    """
    return sum((part.onnx_operations for part in not_foldable_parts(graph).values()), Counter())


_NOTHING: Counter[str] = Counter()


def require_folded_form(proto: onnx.ModelProto, beyond_plain: Counter[str] = _NOTHING) -> None:
    """Raise if a file does not have the form that every exported file has.

    The file may hold as many operations as `beyond_plain` counts, and no more.
    """
    plain = plain_operators()
    found = Counter(node.op_type for node in proto.graph.node if node.op_type not in plain)
    foreign = sorted(found - beyond_plain)
    domains = sorted({each.domain for each in proto.opset_import} - {""})
    if foreign or domains or proto.functions:
        raise NotFoldedError(f"the graph holds more than plain layers: operations {foreign}, domains {domains}")
    ends = [*proto.graph.input, *proto.graph.output]
    if free := [each.name for each in ends if not all(size.dim_value for size in each.type.tensor_type.shape.dim[1:])]:
        raise NotFoldedError(f"the shape of {', '.join(free)} has a free size behind the batch")
    form = (
        [each.name for each in proto.graph.input],
        [each.name for each in proto.graph.output],
        [each.version for each in proto.opset_import],
        proto.ir_version,
    )
    if form != ([INPUT], [OUTPUT], [OPSET], IR_VERSION):
        raise NotFoldedError(f"inputs, outputs, opset and IR are {form}; expected ([{INPUT!r}], [{OUTPUT!r}], [{OPSET}], {IR_VERSION})")
