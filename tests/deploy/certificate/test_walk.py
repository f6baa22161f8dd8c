"""The certificate from a file alone agrees with what wrote the file.

Each thing that would break it is found and named.
"""

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.reference
import pytest
from exact_files import DIALECTS, PIXEL_STEP, Sketch, add_constant, calibrated, changed, constant_of, joined, set_constant
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import helper

from deploy.certificate.certificate import EXACT_BELOW, Certificate, LayerRow, as_table
from deploy.certificate.walk import certificate_of
from export.errors import DamagedError
from export.exact.calibration import largest_sums

Array = NDArray[Any]
Change = Callable[[onnx.GraphProto], None]
SMALL = (1, 8, 8)
FIRST, SECOND = "network_conv1", "network_stages_0_0_conv1"


def certified(folder: Path, content: bytes) -> Certificate:
    path = folder / "model.onnx"
    path.write_bytes(content)
    return certificate_of(path)


@pytest.fixture(scope="module")
def unsigned() -> bytes:
    """The `small` network's exact file."""
    return DIALECTS["unsigned"](calibrated("small", SMALL), SMALL, 10, {})


@pytest.fixture(scope="module")
def signed() -> bytes:
    return DIALECTS["signed"](calibrated("small", SMALL), SMALL, 10, {})


NETWORKS = [
    ("small", SMALL),
    ("resnet20", (3, 16, 16)),
    ("torchvision:mobilenet_v2", (3, 64, 64)),
    ("torchvision:shufflenet_v2_x0_5", (3, 64, 64)),
    ("torchvision:squeezenet1_1", (3, 64, 64)),
]


@pytest.mark.parametrize(("network", "shape"), NETWORKS)
def test_every_network_is_certified_with_the_bounds_of_the_training_side(tmp_path: Path, network: str, shape: tuple[int, int, int]) -> None:
    grid = calibrated(network, shape)
    by_dialect = {name: certified(tmp_path, write(grid, shape, 10, {})) for name, write in DIALECTS.items()}
    bounds = {layer.name.replace(".", "_"): int(largest_sums(layer).max()) for layer in grid.layers}
    for certificate in by_dialect.values():
        assert certificate.refusals == ()
        rows = {row.name: row for row in certificate.layers if row.weight_step_min is not None}
        assert rows.keys() == bounds.keys()
        for name, row in rows.items():
            # The file shows where a value cannot reach the end of its range. The training side does
            # not look.
            assert row.largest_sum <= bounds[name]
            if row.input_high in (127, 255) and row.input_low in (0, -128):
                assert row.largest_sum == bounds[name]
    facts = [[_common(row) for row in certificate.layers] for certificate in by_dialect.values()]
    assert facts[0] == facts[1]
    assert all(row.int16_pairs_safe is not False for row in by_dialect["unsigned"].layers)


def _common(row: LayerRow) -> dict[str, object]:
    """The part of a row that does not depend on how bytes are stored."""
    return {name: value for name, value in row.to_json().items() if name not in ("accumulator_bits", "int16_pairs_safe")}


def _edit(name: str, edit: Callable[[Array], object]) -> Change:
    def change(graph: onnx.GraphProto) -> None:
        value = constant_of(graph, name)
        edit(value)
        set_constant(graph, name, value)

    return change


def _set(place: int, number: float) -> Callable[[Array], object]:
    def edit(value: Array) -> None:
        value.reshape(-1)[place] = number

    return edit


def _node(graph: onnx.GraphProto, name: str) -> onnx.NodeProto:
    (node,) = (each for each in graph.node if each.output[0] == name)
    return node


def _without_clip(graph: onnx.GraphProto) -> None:
    clip = _node(graph, "grid_relu")
    for node in graph.node:
        node.input[:] = [clip.input[0] if name == "grid_relu" else name for name in node.input]
    graph.node.remove(clip)


def _sigmoid(graph: onnx.GraphProto) -> None:
    node = _node(graph, "add")
    place = list(graph.node).index(node)
    graph.node.insert(place + 1, helper.make_node("Sigmoid", ["add"], ["bent"]))
    _node(graph, "grid_relu_2_byte").input[0] = "bent"


def _other_step(graph: onnx.GraphProto, step: float, *nodes: str) -> None:
    add_constant(graph, "other_step", np.array(step, np.float32))
    for name in nodes:
        _node(graph, name).input[1] = "other_step"


def _output_step_of_two_units(graph: onnx.GraphProto) -> None:
    _other_step(graph, 2 * constant_of(graph, "network.conv1.unit")[0], "grid_relu_byte", "grid_relu_float")


def _other_join_step(graph: onnx.GraphProto) -> None:
    _other_step(graph, 2.0**-20, "grid_network_stages_0_0_conv2", "grid_network_stages_0_0_conv2_float")


def _rounding_join(graph: onnx.GraphProto) -> None:
    step = constant_of(graph, _node(graph, "grid_relu_float").input[1])
    _other_step(graph, 2 * float(step), "grid_relu_2_byte", "grid_relu_2_float", "pad_float")


def _mean_over_three(graph: onnx.GraphProto) -> None:
    graph.input[0].type.tensor_type.shape.dim[3].dim_value = 12


BROKEN: dict[str, tuple[Change, str, str]] = {
    "an operation nobody knows": (_sigmoid, "bent", "is a Sigmoid, which has no exact form here"),
    "a step that is no power of two": (
        _edit("network.conv1.step", _set(0, 0.01)),
        "network_conv1_weight",
        r"has the step 0.0099.* in 'network.conv1.step', which is not a power of two",
    ),
    "a negative step": (_edit("network.conv1.step", _set(0, -0.5)), "network_conv1_weight", "-0.5"),
    "an odd weight": (_edit("network.conv1.weight", _set(0, 3)), FIRST, r"half-way between two steps of .*: filter 0 has an odd weight"),
    "an even bias": (_edit("network.conv1.bias", _set(1, 2)), FIRST, r"half-way between two steps of .*: filter 1 has an even bias"),
    "a weight of -128": (_edit("network.stages.0.0.conv1.weight", _set(5, -128)), SECOND, "has a weight of -128, 127 is the limit"),
    "a weight one past the edge of signed inputs": (
        _edit("network.conv1.weight", lambda value: value.reshape(-1).__setitem__(slice(0, 2), (66, 64))),
        FIRST,
        r"pairs of products up to 255 times 130, which CPUs without VNNI saturate at 32767",
    ),
    "a bias one past the edge": (_edit("network.conv1.bias", _set(0, 2**24 + 1)), FIRST, r"partial sums of 16\d* in filter 0, 16777216 is the limit"),
    "a bias off the grid of its sums": (
        _edit("network.conv1.unit", _set(2, 2.0**-30)),
        FIRST,
        "a bias whose step is not input step times weight step",
    ),
    "an output step of two units": (_output_step_of_two_units, FIRST, r"the sums of filter \d+ are odd multiples of"),
    "a clip that is missing": (_without_clip, SECOND, r"pairs of products up to \d+ times \d+"),
    "a join of different steps": (_other_join_step, "add", "joins values of the steps"),
    "a join that rounds": (_rounding_join, "add", "it joins or adds up values of step"),
    "a mean over a count that is no power of two": (_mean_over_three, "global_pool_adaptive_avg_pool2d", "is a mean over 6 values"),
    "a zero point among the weights": (_edit("network.conv1.zero_point", _set(0, 1)), "network_conv1_weight", "has a zero point in the constant"),
    "an attribute nobody knows": (
        lambda graph: _node(graph, FIRST).attribute.append(helper.make_attribute("auto_pad", "SAME_UPPER")),
        FIRST,
        "with auto_pad=b'SAME_UPPER', which is not understood",
    ),
    "a transposed classifier": (
        lambda graph: _node(graph, "network_classifier").attribute.append(helper.make_attribute("alpha", 0.5)),
        "network_classifier",
        "with alpha=0.5",
    ),
    "a classifier off the grid": (
        _edit("network.classifier.weight", _set(0, 0.1)),
        "network_classifier",
        "can have partial sums of .* in filter 0",
    ),
    "a classifier that is not finite": (_edit("network.classifier.weight", _set(0, np.inf)), "network_classifier", "not finite"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_what_breaks_the_proof_is_refused_by_name(tmp_path: Path, unsigned: bytes, what: str) -> None:
    change, node, message = BROKEN[what]
    certificate = certified(tmp_path, changed(unsigned, change))
    assert not certificate.holds
    refusal = certificate.refusals[0]
    assert refusal.node == node, certificate.refusals
    assert re.search(message, refusal.reason)
    assert refusal.remedy
    assert f"{node!r} {refusal.reason}; {refusal.remedy}" in certificate.failure
    assert certificate.to_json()["verdict"] == "refused"


def test_both_remedies_are_named(tmp_path: Path, unsigned: bytes) -> None:
    change, node, _ = BROKEN["a bias one past the edge"]
    (refusal,) = certified(tmp_path, changed(unsigned, change)).refusals
    assert (refusal.node, "fewer bits" in refusal.remedy, "larger step" in refusal.remedy) == (node, True, True)


def test_what_reads_an_unknown_value_is_not_refused_again(tmp_path: Path, unsigned: bytes) -> None:
    certificate = certified(tmp_path, changed(unsigned, _sigmoid))
    assert [refusal.node for refusal in certificate.refusals] == ["bent"]
    assert "network_classifier" not in {row.name for row in certificate.layers}


def test_the_signed_file_is_looked_at_as_closely(tmp_path: Path, signed: bytes) -> None:
    off_grid = _edit("network.conv1.bias", lambda value: value.__imul__(1.5))
    refusal = certified(tmp_path, changed(signed, off_grid)).refusals[0]
    assert (refusal.node, "not a multiple of input step times weight step" in refusal.reason) == (FIRST, True)
    even = _edit("network.conv1.bias", lambda value: value.__imul__(2))
    assert "filter 0 has an even bias" in certified(tmp_path, changed(signed, even)).refusals[0].reason


def test_a_pool_adds_up_the_sums_of_each_filter_in_its_own_unit(tmp_path: Path) -> None:
    """Sixteen sums are added up, each from -255 to 255.

    Pixels reach 127 and -128 steps, weights are 2, biases 1.
    """
    sketch = Sketch()
    certificate = certified(tmp_path, sketch.content(_pooled(sketch, _two_units(sketch))))
    assert certificate.refusals == ()
    layer, pool = certificate.layers
    assert (layer.largest_sum, layer.tf32_safe) == (2 * 128 + 1, True)
    assert (pool.name, pool.operation, pool.input_low, pool.input_high) == ("pool", "ReduceSum", 1 - 2 * 128, 1 + 2 * 127)
    assert pool.largest_sum == 16 * 255


def test_a_pool_of_sums_past_the_edge_is_refused(tmp_path: Path) -> None:
    """Each sum is below 2^24, but sixteen of them together are not."""
    for bias, refused in ((2**20 - 255, []), (2**20 + 1, ["pool"])):
        sketch = Sketch()
        weights = np.array([2], np.int8).reshape(1, 1, 1, 1)
        pool = _pooled(sketch, sketch.layer(sketch.pixels(), "layer", weights, [bias], PIXEL_STEP))
        assert [each.node for each in certified(tmp_path, sketch.content(pool)).refusals] == refused


def test_the_edge_itself_is_certified_and_the_next_odd_number_is_not(tmp_path: Path) -> None:
    def file(bias: int) -> bytes:
        sketch = Sketch()
        sums = sketch.layer(sketch.pixels(), "first", np.full((1, 1, 4, 4), 64, np.int8), [bias], PIXEL_STEP)
        rounded = sketch.quantised(sums, 2.0, 0, 127)
        return sketch.content(sketch.flattened(rounded, 1))

    terms = 16 * 64 * 128
    assert certified(tmp_path, file(EXACT_BELOW - 1 - terms)).holds
    (refusal,) = certified(tmp_path, file(EXACT_BELOW + 1 - terms)).refusals
    assert refusal.node == "first"


def test_a_quantiser_reads_what_32_bits_can_count(tmp_path: Path) -> None:
    """Beyond 2^31 steps, onnx's reference casts to 0, where others clip to 255."""

    def file(bias: int) -> bytes:
        sketch = Sketch()
        sums = sketch.layer(sketch.pixels(), "first", np.zeros((1, 1, 4, 4), np.int8), [bias], PIXEL_STEP)
        return sketch.content(sketch.flattened(sketch.quantised(sums, PIXEL_STEP * 2.0**-6 / 2**8, 128), 1))

    assert certified(tmp_path, file(2**23 - 1)).holds
    (refusal,) = certified(tmp_path, file(2**23 + 1)).refusals
    assert (refusal.node, f"reach {2**31 + 2**8} steps" in refusal.reason) == ("first_byte", True)
    with np.errstate(invalid="ignore"):
        in_reference = onnx.reference.ReferenceEvaluator(onnx.load_model_from_string(file(2**23 + 1)))
        (found,) = in_reference.run(None, {"image": np.zeros((1, 1, 4, 4), np.uint8)})
    assert np.asarray(found).item() < 0


def _bytes(sketch: Sketch) -> str:
    """The pixels, quantised."""
    sketch.quantised(sketch.pixels(), PIXEL_STEP, 128)
    return sketch.nodes.pop().input[0]


def _scaled_reading(sketch: Sketch) -> str:
    return sketch.dequantised(_bytes(sketch), 2 * PIXEL_STEP, 128)


def _without_zero_point(sketch: Sketch, operation: str) -> str:
    zero = sketch.constant("zero", np.int8(0) if operation == "DequantizeLinear" else np.uint8(0))
    x = sketch.node("QuantizeLinear", [sketch.pixels(), sketch.constant("step", np.float32(PIXEL_STEP)), zero], "codes")
    x = sketch.node("DequantizeLinear", [x, "step", "zero"], "grid")
    (node,) = (each for each in sketch.nodes if each.op_type == operation and "zero" in each.input)
    del node.input[2]
    return x


def _float_layer(sketch: Sketch) -> str:
    parts = [sketch.constant("weight", np.full((1, 1, 4, 4), 2, np.float32)), sketch.constant("bias", np.full(1, PIXEL_STEP, np.float32))]
    return sketch.node("Conv", [sketch.pixels(), *parts], "layer")


def _mixed_bytes(sketch: Sketch) -> str:
    x = sketch.pixels()
    points = [sketch.constant(f"byte_{number}", np.uint8(number)) for number in (0, 128)]
    parts = [sketch.node("QuantizeLinear", [x, f"step_{PIXEL_STEP!r}", point], f"part_{point}") for point in points]
    return sketch.dequantised(sketch.node("Concat", parts, "joined", axis=1), PIXEL_STEP, 0)


def _two_units(sketch: Sketch, name: str = "layer") -> str:
    sums = sketch.layer(sketch.pixels(), name, np.array([2, 2], np.int8).reshape(2, 1, 1, 1), [1, 1], PIXEL_STEP)
    for part, steps in (("step", [1, 2]), ("unit", [PIXEL_STEP, 2 * PIXEL_STEP])):
        sketch.constant(f"{name}.{part}", np.array(steps, np.float32))
    return sums


def _clipped_pixels(sketch: Sketch, bound: float) -> str:
    return sketch.node("Clip", [sketch.pixels(), "", sketch.constant("bound", np.float32(bound))], "clipped")


def _pooled(sketch: Sketch, x: str, operation: str = "ReduceSum", axes: Sequence[int] = (2, 3)) -> str:
    return sketch.node(operation, [x, sketch.constant("axes", np.array(axes, np.int64))], "pool", keepdims=1)


def _cast(sketch: Sketch) -> str:
    return sketch.node("Cast", [_bytes(sketch)], "cast", to=onnx.TensorProto.FLOAT)


def _padded_bytes(sketch: Sketch) -> str:
    sketch.quantised(sketch.layer(sketch.pixels(), "stem", np.full((1, 1, 1, 1), 64, np.int8), [1], PIXEL_STEP), PIXEL_STEP, 0, 127)
    padded = _pad(sketch, "stem_clip", np.uint8(255))
    return sketch.layer(sketch.dequantised(padded, PIXEL_STEP, 0), "layer", np.full((1, 1, 2, 2), 126, np.int8), [1], PIXEL_STEP)


def _pad(sketch: Sketch, x: str, value: np.generic, *, names_axes: bool = True) -> str:
    pads, axes = (sketch.constant(*each) for each in (("pads", np.array([0, 0, 1, 1] * 2, np.int64)), ("axes", np.arange(4, dtype=np.int64))))
    inputs = [x, pads, sketch.constant("value", value), axes]
    return sketch.node("Pad", inputs if names_axes else inputs[:3], "padded")


def _stem(sketch: Sketch, bias: int = 1) -> str:
    """Odd sums in units of 2^-12."""
    return sketch.layer(sketch.pixels(), "stem", np.full((1, 1, 1, 1), 64, np.int8), [bias], PIXEL_STEP)


def _twice_quantised(sketch: Sketch, step: float, zero_point: int) -> str:
    x = sketch.quantised(_stem(sketch), PIXEL_STEP, 128)
    return sketch.quantised(x, step, zero_point)


def _requantised_and_clipped(sketch: Sketch) -> str:
    return sketch.quantised(sketch.quantised(_stem(sketch), PIXEL_STEP, 128), PIXEL_STEP, 128, 127)


def _clipped_side_by_side(sketch: Sketch, bound: float) -> str:
    return sketch.node("Concat", [_clipped_pixels(sketch, bound), sketch.pixels()], "joined", axis=1)


def _pooled_across_units(sketch: Sketch) -> str:
    return _pooled(sketch, sketch.node("Transpose", [_two_units(sketch)], "moved", perm=[0, 2, 3, 1]))


def _blind_pool(sketch: Sketch) -> str:
    return sketch.node("MaxPool", [sketch.pixels()], "pool", kernel_shape=[2, 2], pads=[1, 1, 1, 1], dilations=[5, 5], strides=[2, 2])


def _places(sketch: Sketch) -> str:
    sketch.nodes.append(helper.make_node("MaxPool", [sketch.pixels()], ["pool", "places"], name="pool", kernel_shape=[2, 2]))
    return "pool"


def _behind_a_pool(sketch: Sketch, layers: int) -> str:
    """Signed bytes, summed over the image, then layers, and bytes of both signs."""
    x, step = _pooled(sketch, sketch.quantised(_stem(sketch), PIXEL_STEP, 128)), PIXEL_STEP
    for number in range(layers):
        x = sketch.layer(x, f"layer_{number}", np.full((1, 1, 1, 1), 2, np.int8), [1], step, 1.0)
    return sketch.quantised(x, step, 128)


def _joined_pool(sketch: Sketch) -> str:
    x = sketch.quantised(_stem(sketch), PIXEL_STEP, 128)
    return sketch.node("Add", [_pooled(sketch, x), x], "join")


def _finer_join(sketch: Sketch) -> str:
    x = sketch.quantised(_stem(sketch), PIXEL_STEP, 128)
    return sketch.quantised(sketch.node("Add", [x, x], "join"), PIXEL_STEP / 2, 128)


def _wide_step(sketch: Sketch, step: float) -> str:
    """Sums up to 2^24 units of 2^-12 each."""
    return sketch.quantised(_stem(sketch, 2**24 - 1 - 64 * 128), step, 128)


def _wide_weights(sketch: Sketch, x: str) -> str:
    """Pairs of weights of 126, times bytes from 0 to 255."""
    sketch.shape = 1, 2, 2
    return sketch.layer(x, "layer", np.full((1, 1, 2, 2), 126, np.int8), [1], PIXEL_STEP)


def _cast_pixels(sketch: Sketch) -> str:
    whole = sketch.node("Cast", ["image"], "cast", to=onnx.TensorProto.FLOAT)
    centred = sketch.node("Sub", [whole, sketch.constant("offset", np.float32(128))], "centred")
    return sketch.node("Mul", [centred, sketch.constant("step", np.float32(PIXEL_STEP))], "scaled")


def _another_number_of_channels(sketch: Sketch) -> str:
    sums = sketch.layer(sketch.pixels(), "layer", np.full((2, 1, 1, 1), 2, np.int8), [1, 1], PIXEL_STEP)
    sketch.nodes[-1].attribute.append(helper.make_attribute("group", 2))
    return sums


def _single_number(sketch: Sketch) -> str:
    names = [sketch.constant("code", np.int8(2)), sketch.constant("step", np.float32(1))]
    sketch.node("DequantizeLinear", names, "number")
    return _stem(sketch)


def _step_of_axes(sketch: Sketch) -> str:
    return sketch.node("Mul", [sketch.pixels(), sketch.constant("step", np.full((1, 1), 2, np.float32))], "scaled")


def _steps_of_inputs(sketch: Sketch) -> str:
    sums = sketch.layer(sketch.pixels(), "layer", np.full((1, 1, 4, 4), 2, np.int8), [1], PIXEL_STEP)
    sketch.constant("layer.step", np.array([1, 1, 1, 1], np.float32))
    return sums


def _unsigned_weights(sketch: Sketch) -> str:
    sums = sketch.layer(sketch.pixels(), "layer", np.full((1, 1, 4, 4), 2, np.int8), [1], PIXEL_STEP)
    sketch.constant("layer.weight", np.full((1, 1, 4, 4), 2, np.uint8))
    return sums


def _subtracted(sketch: Sketch) -> str:
    return sketch.node("Sub", [sketch.pixels(), sketch.constant("offset", np.float32(0.01))], "centred")


def _layer_of(sketch: Sketch, step: float) -> str:
    return sketch.layer(sketch.pixels(), "layer", np.full((1, 1, 4, 4), 2, np.int8), [1], PIXEL_STEP, step)


def _two_sums_side_by_side(sketch: Sketch) -> str:
    return sketch.node("Concat", [_two_units(sketch, "one"), _two_units(sketch, "other")], "joined", axis=1)


REFUSED: dict[str, tuple[Callable[[Sketch], str], str, str]] = {
    "bytes read with another step": (
        _scaled_reading,
        "image_float_byte_float",
        "reads bytes with scale 0.03125 .* that have 0.015625",
    ),
    "bytes read without a zero point": (lambda s: _without_zero_point(s, "DequantizeLinear"), "grid", "has no zero point"),
    "bytes written without a zero point": (lambda s: _without_zero_point(s, "QuantizeLinear"), "codes", "has no zero point"),
    "an odd zero point": (lambda s: s.quantised(s.pixels(), PIXEL_STEP, 64), "image_float_byte", "has the zero point 64"),
    "float weights between bytes": (
        lambda s: s.quantised(_float_layer(s), PIXEL_STEP, 128),
        "layer_byte",
        "makes bytes of 'layer', whose float32 weights on bytes",
    ),
    "bytes of different zero points side by side": (_mixed_bytes, "joined", "joins bytes of different steps or zero points"),
    "sums side by side": (_two_sums_side_by_side, "joined", "joins sums that are not rounded"),
    "channels of different steps, added up and joined": (
        lambda s: s.node("Add", [_pooled(s, _two_units(s))] * 2, "twice"),
        "twice",
        "whose channels have different steps",
    ),
    "values clipped beside their step, added up": (lambda s: _pooled(s, _clipped_pixels(s, 0.3)), "pool", "is clipped beside its step"),
    "a clip half-way between two steps": (
        lambda s: s.quantised(_clipped_pixels(s, 1.5 * PIXEL_STEP), PIXEL_STEP, 128),
        "clipped_byte",
        "half-way between two steps of 0.015625: it is clipped there",
    ),
    "a rounding in float32 half-way between two steps": (
        lambda s: s.node("Round", [s.node("Mul", [s.pixels(), s.constant("inverse", np.float32(32))], "scaled")], "rounded"),
        "rounded",
        "half-way between two steps of 0.03125: it joins or adds up values of step 0.5",
    ),
    "a pool whose sizes are rounded up": (
        lambda s: s.node("MaxPool", [s.pixels()], "pool", kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1),
        "pool",
        "is a MaxPool with ceil_mode=1, which is not understood",
    ),
    "a sum over channels": (lambda s: _pooled(s, s.pixels(), axes=(1, 2)), "pool", r"reduces the axes \[1, 2\]"),
    "an offset beside the step": (_subtracted, "centred", "subtracts 0.0099.*, which is not a multiple of the step"),
    "a cast of other bytes than the image": (_cast, "cast", "casts something else than the image"),
    "padding beside the step": (lambda s: _pad(s, s.pixels(), np.float32(0.01)), "padded", "pads with 0.0099.*, which is not a multiple of the step"),
    "padding with more than the values reach": (_padded_bytes, "layer", "pairs of products up to 255 times 252"),
    "steps per input": (_steps_of_inputs, "layer_weight", "has steps in 'layer.step' that are not one a filter"),
    "unsigned weights": (_unsigned_weights, "layer", "has weights in uint8, expected int8"),
    "steps that are flushed to zero": (lambda s: _layer_of(s, 2.0**-122), "layer", "steps so small or so large that float32 loses them"),
    "weights that are computed": (lambda s: s.node("Conv", [s.pixels(), s.pixels()], "layer"), "layer", "multiplies or adds 'image_float'"),
    "bytes made of bytes": (lambda s: _twice_quantised(s, PIXEL_STEP, 0), "stem_byte_float_byte_float", "reads bytes that were made of bytes"),
    "bytes made of bytes with a finer step": (lambda s: _twice_quantised(s, PIXEL_STEP / 2, 128), "stem_byte_float_byte", "rounds bytes again"),
    "bytes made of bytes, clipped": (_requantised_and_clipped, "stem_byte_float_clip", "clips bytes of both signs that were made of bytes"),
    "values clipped beside their step, side by side": (
        lambda s: _clipped_side_by_side(s, 0.3),
        "joined",
        "joins values that are clipped beside their step",
    ),
    "sums of different units, added up across channels": (_pooled_across_units, "pool", "reads 'moved', whose channels have different steps"),
    "windows on padding alone": (_blind_pool, "pool", "has windows that may lie on padding alone"),
    "places of the largest values": (_places, "pool", "gives the places of its values"),
    "padding along axes that it does not name": (
        lambda s: _pad(s, s.pixels(), np.float32(0), names_axes=False),
        "padded",
        "does not name the axes that it pads",
    ),
    "padding with -0": (lambda s: _pad(s, s.pixels(), np.float32(-0.0)), "padded", r"has -0.0 as its input 'value'"),
    "a bound that is no number": (lambda s: _clipped_pixels(s, np.nan), "clipped", "has nan as its input 'bound'"),
    "bytes of a pool": (lambda s: _behind_a_pool(s, 0), "pool_byte", "makes bytes of the pool 'pool'"),
    "bytes behind a pool": (lambda s: _behind_a_pool(s, 2), "layer_1_byte", "makes bytes with a zero point of 'layer_1', behind a sum"),
    "a pool that is joined": (_joined_pool, "join", "joins the pool 'pool'"),
    "a join with a finer step": (_finer_join, "join", "is rounded to the step 0.0078125, finer than its own"),
    "a step too wide for a zero point beside it": (
        lambda s: _wide_step(s, 2.0**5),
        "stem_byte",
        "rounds to a step of 131072 units, 65536 is the limit beside a zero point",
    ),
    "wide weights on cast pixels": (lambda s: _wide_weights(s, _cast_pixels(s)), "layer", "pairs of products up to 255 times 252"),
    "wide weights on rectified bytes": (
        lambda s: _wide_weights(s, s.node("Relu", [s.dequantised("image", PIXEL_STEP, 0)], "rectified")),
        "layer",
        "pairs of products up to 255 times 252",
    ),
    "weights for another number of channels": (_another_number_of_channels, "layer", r"has weights of the shape \(2, 1, 1, 1\) for 1 channels in 2"),
    "a single number as weights": (_single_number, "number", "has 'code', a single number"),
    "a step of several axes": (_step_of_axes, "scaled", "has a step of 2 axes in 'step'"),
    "an addition of a constant": (
        lambda s: s.node("Add", [s.pixels(), s.constant("one", np.float32(1))], "sum"),
        "sum",
        "reads 'one', which is not float32 values that depend on the image",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_form_that_is_not_exact_is_refused_by_name(tmp_path: Path, what: str) -> None:
    build, node, message = REFUSED[what]
    sketch = Sketch()
    certificate = certified(tmp_path, sketch.content(build(sketch)))
    assert [refusal.node for refusal in certificate.refusals] == [node], certificate.refusals
    assert re.search(message, certificate.refusals[0].reason)


def test_the_widest_step_beside_a_zero_point(tmp_path: Path) -> None:
    """OpenVINO adds the zero point before it rounds. Without a zero point there is no limit."""
    for step, zero_point, nodes in ((2.0**4, 128, []), (2.0**5, 128, ["stem_byte"]), (2.0**5, 0, [])):
        sketch = Sketch()
        x = sketch.quantised(_stem(sketch, 2**24 - 1 - 64 * 128), step, zero_point)
        assert [each.node for each in certified(tmp_path, sketch.content(x)).refusals] == nodes


def test_padding_beyond_a_rectifier_is_part_of_what_a_layer_reads(tmp_path: Path) -> None:
    sketch = Sketch()
    padded = _pad(sketch, sketch.node("Relu", [sketch.pixels()], "rectified"), np.float32(-2))
    x = sketch.quantised(padded, PIXEL_STEP, 128)
    certificate = certified(tmp_path, sketch.content(sketch.layer(x, "layer", np.full((1, 1, 3, 3), 64, np.int8), [1], PIXEL_STEP)))
    assert certificate.refusals == ()
    assert (certificate.layers[0].input_low, certificate.layers[0].input_high) == (-128, 127)


def test_a_sum_over_a_large_image(tmp_path: Path) -> None:
    for size, holds in ((362, True), (363, False)):
        sketch = Sketch(1, size)
        certificate = certified(tmp_path, sketch.content(_pooled(sketch, sketch.pixels())))
        assert certificate.holds == holds == (size * size * 128 < EXACT_BELOW)


def test_a_size_that_only_the_file_claims_is_not_believed(tmp_path: Path) -> None:
    def claim(graph: onnx.GraphProto) -> None:
        graph.input[0].type.tensor_type.shape.dim[2].dim_param = "height"
        graph.value_info.append(helper.make_tensor_value_info("image_float", onnx.TensorProto.FLOAT, ["batch", 1, 4, 4]))

    def claim_as_output(graph: onnx.GraphProto) -> None:
        claim(graph)
        graph.output.append(graph.value_info.pop())

    sketch = Sketch()
    content = sketch.content(_pooled(sketch, sketch.pixels(), "ReduceMean"))
    assert certified(tmp_path, content).holds
    for claiming in (claim, claim_as_output):
        (refusal,) = certified(tmp_path, changed(content, claiming)).refusals
        assert refusal.reason == "reads 'image_float', whose size 2 the file does not say"


@pytest.mark.parametrize(
    ("clipped_at_0", "other", "expected"),
    [(True, "identity", "the same"), (False, "identity", "may differ"), (True, "projection", "may differ"), (False, "projection", "may differ")],
)
def test_whether_a_branch_may_go_unclipped_into_a_join(tmp_path: Path, clipped_at_0: bool, other: str, expected: str) -> None:
    certificate = certified(tmp_path, joined(clipped_at_0, other))
    assert certificate.refusals == ()
    (join,) = certificate.joins
    assert (join.name, join.step, join.rounds, join.without_branch_quantiser) == ("join", 2.0**-5, False, expected)
    assert (join.low, join.high, join.bits) == ((-128, 254, 8) if other == "identity" else (-256, 254, 9))


def test_json_has_the_keys_that_readers_rely_on(tmp_path: Path, unsigned: bytes) -> None:
    content = json.loads(json.dumps(certified(tmp_path, unsigned).to_json(), allow_nan=False))
    assert list(content) == [
        "format",
        "verdict",
        "model_sha256",
        "exact_below",
        "least_headroom_bits",
        "tf32_safe",
        "int16_pairs_safe",
        "without_branch_quantisers",
        "layers",
        "joins",
        "refusals",
    ]
    assert (content["format"], content["verdict"], content["exact_below"]) == (1, "holds", 2**24)
    assert content["model_sha256"] == hashlib.sha256(unsigned).hexdigest()
    assert content["least_headroom_bits"] == min(row["headroom_bits"] for row in content["layers"])
    assert {"name", "operation", "largest_sum", "plain_bound", "bits", "headroom_bits", "ties"} <= content["layers"][0].keys()
    assert {"name", "step", "bits", "rounds", "without_branch_quantiser"} <= content["joins"][0].keys()


def test_the_table_has_a_line_a_layer_and_says_what_to_mind(tmp_path: Path, unsigned: bytes, signed: bytes) -> None:
    lines = as_table(certified(tmp_path, unsigned)).splitlines()
    assert [line.split()[0] for line in lines[1:3]] == [FIRST, SECOND]
    assert any(line.startswith("every sum is exact in float32 and int32 in any order, with ") for line in lines)
    assert "NOT SAFE" not in "".join(lines)
    assert "not for kernels that add pairs of products in 16 bits: " in as_table(certified(tmp_path, signed))


@pytest.mark.parametrize("content", [b"", b"no model", b"\x08\x0a"])
def test_what_is_no_model_is_damaged(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(DamagedError):
        certified(tmp_path, content)


def test_a_graph_that_is_not_valid_is_damaged(tmp_path: Path, unsigned: bytes) -> None:
    def cut(graph: onnx.GraphProto) -> None:
        del graph.initializer[3]

    with pytest.raises(DamagedError, match=r"is not a valid model: .*; export it again"):
        certified(tmp_path, changed(unsigned, cut))


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damage_anywhere_ends_in_a_certificate_a_refusal_or_exit_5(tmp_path: Path, unsigned: bytes, data: st.DataObject) -> None:
    content = bytearray(unsigned)
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=4)):
        content[place] = data.draw(st.integers(0, 255))
    with suppress(DamagedError):
        certificate = certified(tmp_path, bytes(content))
        assert certificate.holds == (certificate.refusals == ())
