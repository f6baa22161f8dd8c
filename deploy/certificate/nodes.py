"""The nodes that a certificate understands, and why some nodes that ONNX allows are refused.

Takes a node with its attributes and inputs. Of the values that it reads it knows only the sizes.
"""

from collections.abc import Callable, Sequence

import onnx
from onnx import NodeProto, helper

from deploy.runners.onnx_file import OWN_DOMAINS

FEWER_BITS = "give its weights fewer bits there, or a larger step to them or to what it reads"
ANOTHER_STEP = "give its weights fewer bits there, or a smaller step"
POOL_AS_LAYER = "write the pool as a convolution with an odd bias"
ANOTHER_FORM = "export it again with pipeline, which writes the form that is understood"


class RefusedError(Exception):
    """A node that cannot be certified. The caller knows its name."""

    def __init__(self, reason: str, remedy: str) -> None:
        super().__init__(reason)
        self.reason, self.remedy = reason, remedy


def name_of(node: NodeProto) -> str:
    """The name of the node's result, which no other node has."""
    return node.output[0] if node.output else node.op_type


def attributes_of(node: NodeProto) -> dict[str, object]:
    return {each.name: helper.get_attribute_value(each) for each in node.attribute}


ANY = object()
_FORMS: dict[str, dict[str, object]] = {
    "Add": {},
    "Cast": {"to": onnx.TensorProto.FLOAT, "saturate": ANY},
    "Clip": {},
    "Concat": {"axis": ANY},
    "Conv": {"strides": ANY, "pads": ANY, "dilations": ANY, "group": ANY, "kernel_shape": ANY, "auto_pad": b"NOTSET"},
    "DequantizeLinear": {"axis": ANY, "block_size": 0},
    "Flatten": {"axis": ANY},
    "Gemm": {"transB": 1, "transA": 0, "alpha": 1.0, "beta": 1.0},
    "Identity": {},
    "MaxPool": {"kernel_shape": ANY, "strides": ANY, "pads": ANY, "dilations": ANY, "ceil_mode": 0, "auto_pad": b"NOTSET", "storage_order": 0},
    "Mul": {},
    "Pad": {"mode": b"constant"},
    "QuantizeLinear": {"axis": ANY, "block_size": 0, "output_dtype": 0, "saturate": ANY},
    "ReduceMean": {"keepdims": ANY, "noop_with_empty_axes": 0},
    "ReduceSum": {"keepdims": ANY, "noop_with_empty_axes": 0},
    "Relu": {},
    "Round": {},
    "Reshape": {"allowzero": ANY},
    "Split": {"axis": ANY, "num_outputs": ANY},
    "Sub": {},
    "Transpose": {"perm": ANY},
}
"""The operations that are understood, with the attributes allowed and the value each must have."""
_NEEDED = {"Gemm": {"transB"}, "Cast": {"to"}}


def require_zero_point(node: NodeProto) -> None:
    """Require a zero point.

    ONNX Runtime's optimiser copies pairs of such nodes behind operations that only move values. In
    the copies it takes bytes for unsigned ones.
    """
    if len(node.input) < 3 or not node.input[2]:
        raise RefusedError("has no zero point, which ONNX Runtime needs to know signed bytes", "give it one, be it 0")


def _require_named_axes(node: NodeProto) -> None:
    if len(node.input) < 4 or not node.input[3]:
        raise RefusedError("does not name the axes that it pads, and ONNX Runtime moves such padding into a MaxPool", "name them as its fourth input")


def _require_no_places(node: NodeProto) -> None:
    if len(node.output) > 1:
        raise RefusedError("gives the places of its values, which depend on who breaks ties", "leave its second output out")


_RULES: dict[str, tuple[Callable[[NodeProto], None], ...]] = {
    "MaxPool": (_require_no_places,),
    "Pad": (_require_named_axes,),
    "QuantizeLinear": (require_zero_point,),
}


def require_form(node: NodeProto) -> None:
    if node.op_type not in _FORMS or node.domain not in OWN_DOMAINS:
        raise RefusedError(f"is a {node.op_type}, which has no exact form here", f"express it by {', '.join(_FORMS)}")
    form, found = _FORMS[node.op_type], attributes_of(node)
    for name, value in found.items():
        if name not in form or (form[name] is not ANY and form[name] != value):
            raise RefusedError(f"is a {node.op_type} with {name}={value!r}, which is not understood", ANOTHER_FORM)
    for rule in _RULES.get(node.op_type, ()):
        rule(node)
    if missing := _NEEDED.get(node.op_type, set()) - found.keys():
        raise RefusedError(f"is a {node.op_type} without {', '.join(missing)}, which is not understood", ANOTHER_FORM)


def require_channels(node: NodeProto, channels: int, weights: tuple[int, ...]) -> None:
    """Require weights that fit the input. Some runtimes check no more than ONNX does, and crash."""
    attributes = attributes_of(node)
    groups, kernel = attributes.get("group", 1), attributes.get("kernel_shape", list(weights[2:]))
    assert isinstance(groups, int)
    if groups < 1 or weights[1] * groups != channels or weights[0] % groups or kernel != list(weights[2:]):
        raise RefusedError(f"has weights of the shape {weights} for {channels} channels in {groups} groups and a kernel of {kernel}", ANOTHER_FORM)


def require_pixels_in_windows(node: NodeProto, sizes: Sequence[int]) -> None:
    """Require that every window holds pixels.

    For a window on padding alone, runtimes give different values: the lowest float32, the lowest
    byte, minus infinity.
    """
    attributes = attributes_of(node)
    kernel, pads = _numbers(attributes, "kernel_shape", []), _numbers(attributes, "pads", [0] * 2 * len(sizes))
    dilations = _numbers(attributes, "dilations", [1] * len(sizes))
    for axis, size in enumerate(sizes):
        padding = max(pads[axis], pads[axis + len(sizes)])
        if padding > dilations[axis] * (kernel[axis] - 1) or (padding and size < dilations[axis]):
            raise RefusedError("has windows that may lie on padding alone", "give it less padding or a smaller dilation")


def _numbers(attributes: dict[str, object], name: str, default: list[int]) -> list[int]:
    found = attributes.get(name, default)
    assert isinstance(found, list)
    return found
