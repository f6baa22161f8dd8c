"""Makes a float16 form of a folded network's ONNX file, for runtimes that follow its types.

Normalisation, means, and the layer whose sums are the logits stay float32; all else is float16.
The same file gives the same bytes.
"""

from collections.abc import Callable, Iterable

import numpy as np
import onnx
import onnx_ir as ir

from export.errors import UsageError

_WEIGHTED = frozenset({"Conv", "Gemm"})
_MEANS = frozenset({"ReduceMean", "GlobalAveragePool"})
_LARGEST = float(np.finfo(np.float16).max)


def float16_onnx(content: bytes) -> bytes:
    """The same network with casts to and from float16."""
    model = ir.from_proto(onnx.load_model_from_string(content))
    _CastInserter(model.graph, _in_float16(model.graph)).cast()
    model.graph.sort()  # the casts were appended at the end
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    return proto.SerializeToString(deterministic=True)


def _in_float16(graph: ir.Graph) -> frozenset[ir.Node]:
    """The nodes between the normalisation and the head."""
    weighted = [node for node in graph if node.op_type in _WEIGHTED]
    if len(weighted) < 2:
        raise UsageError(f"the network has {len(weighted)} layers with weights and keeps the last one in float32; build float32")
    *hidden, last = weighted
    means = [node for node in graph if node.op_type in _MEANS]
    head = {last, *means} | (_reached([last, *means], _readers) - _reached(hidden, _sources))
    return (_reached(hidden[:1], _readers) | {*hidden}) - head


def _reached(nodes: list[ir.Node], neighbours: Callable[[ir.Node], Iterable[ir.Node]]) -> frozenset[ir.Node]:
    """These nodes, and all that can be reached from them."""
    found, todo = set(nodes), list(nodes)
    while todo:
        new = {node for node in neighbours(todo.pop()) if node not in found}
        found |= new
        todo += new
    return frozenset(found)


def _readers(node: ir.Node) -> Iterable[ir.Node]:
    return node.successors()


def _sources(node: ir.Node) -> Iterable[ir.Node]:
    return node.predecessors()


class _CastInserter:
    """Puts casts where float16 meets float32."""

    def __init__(self, graph: ir.Graph, in_float16: frozenset[ir.Node]) -> None:
        self.graph, self.in_float16 = graph, in_float16
        self.casts: dict[tuple[str, ir.DataType], ir.Value] = {}

    def cast(self) -> None:
        nodes, kinds = list(self.graph), {value: value.dtype for value in _values(self.graph)}
        for node in nodes:
            wanted = ir.DataType.FLOAT16 if node in self.in_float16 else ir.DataType.FLOAT
            for index, value in enumerate(node.inputs):
                if value is not None and kinds[value] == ir.DataType.FLOAT and value.dtype != wanted:
                    node.replace_input_with(index, self.as_type(value, wanted))
            for value in node.outputs:
                if kinds[value] == ir.DataType.FLOAT:
                    value.dtype = wanted
        for index, value in enumerate(self.graph.outputs):
            if kinds[value] == ir.DataType.FLOAT and value.dtype != ir.DataType.FLOAT:
                raise UsageError(f"output {index} ({value.name}) comes from a layer in float16; build float32")
        self.drop_unread_constants()

    def as_type(self, value: ir.Value, wanted: ir.DataType) -> ir.Value:
        key = (str(value.name), wanted)
        if key not in self.casts:
            constant = value.is_initializer() and value.const_value is not None
            self.casts[key] = self.constant(value) if constant else self.cast_node(value, wanted)
        return self.casts[key]

    def constant(self, value: ir.Value) -> ir.Value:
        assert value.const_value is not None
        numbers = value.const_value.numpy()
        if float(np.abs(numbers).max(initial=0.0)) > _LARGEST:
            raise UsageError(f"{value.name} holds {np.abs(numbers).max():.3g}, float16 ends at {_LARGEST:g}; build float32")
        name = f"{value.name}_float16"
        tensor = ir.tensor(numbers.astype(np.float16), name=name)
        half = ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT16), shape=value.shape, const_value=tensor)
        self.graph.register_initializer(half)
        return half

    def cast_node(self, value: ir.Value, wanted: ir.DataType) -> ir.Value:
        kind = "float16" if wanted == ir.DataType.FLOAT16 else "float32"
        node = ir.node("Cast", [value], attributes={"to": int(wanted)}, name=f"{value.name}_to_{kind}")
        (result,) = node.outputs
        result.name, result.dtype, result.shape = f"{value.name}_{kind}", wanted, value.shape
        self.graph.append(node)
        return result

    def drop_unread_constants(self) -> None:
        for name, value in list(self.graph.initializers.items()):
            if not value.uses() and not value.is_graph_output():
                del self.graph.initializers[name]


def _values(graph: ir.Graph) -> list[ir.Value]:
    produced = [value for node in graph for value in node.outputs]
    return [*graph.inputs, *graph.initializers.values(), *produced]
