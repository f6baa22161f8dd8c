"""Computes the exactness certificate of an ONNX file by a walk over its nodes.

Works in steps and intervals, for either dialect. Shares no code with what wrote the file. A node
that it does not understand is refused by name, never skipped.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import onnx
from onnx import NodeProto, numpy_helper

from deploy.certificate.certificate import EXACT_BELOW, WHOLE_BELOW, WIDEST_STEP, Certificate, JoinRow, LayerRow, Refusal
from deploy.certificate.nodes import (
    ANOTHER_FORM,
    ANOTHER_STEP,
    FEWER_BITS,
    POOL_AS_LAYER,
    RefusedError,
    attributes_of,
    name_of,
    require_channels,
    require_form,
    require_pixels_in_windows,
    require_zero_point,
)
from deploy.certificate.sums import (
    Array,
    Branch,
    Bytes,
    Floats,
    StoredIntegers,
    are_normal,
    are_powers_of_two,
    floats,
    layer_row,
    layer_sum,
    pooled_row,
    shape_of,
    terms_of,
)
from deploy.runners.onnx_file import checked_bytes
from export.errors import DamagedError

Value = Bytes | Floats | StoredIntegers
Values = Sequence[Value]
LIMITS = {np.dtype(np.uint8): (0, 255), np.dtype(np.int8): (-128, 127)}
_HEIGHT_AND_WIDTH = [2, 3]


def certificate_of(path: Path) -> Certificate:
    """What can be proved of a file. DamagedError if it is not a valid model."""
    content = checked_bytes(path)
    walk = _Walk(*_opened(path, content))
    walk.run()
    return Certificate(
        sha256=hashlib.sha256(content).hexdigest(),
        layers=tuple(walk.layers.values()),
        joins=tuple(join.row() for join in walk.joins.values()),
        refusals=tuple(walk.refusals),
    )


def _opened(path: Path, content: bytes) -> tuple[onnx.GraphProto, dict[str, Array]]:
    """The graph with the shapes of its values, and its constants."""
    try:
        model = onnx.load_model_from_string(content)
        onnx.checker.check_model(model)
        _forget_sizes(model.graph)
        graph = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True).graph
        constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
        _require_text(graph)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, ValueError) as error:
        raise DamagedError(f"{path} is not a valid model: {' '.join(str(error).split())}; export it again") from error
    return graph, constants


def _forget_sizes(graph: onnx.GraphProto) -> None:
    """Delete the sizes that a file states for its inner values, because they are not trusted.

    The sizes of its inputs stay: every runtime keeps to those.
    """
    del graph.value_info[:]
    for output in graph.output:
        output.type.tensor_type.ClearField("shape")


def _require_text(graph: onnx.GraphProto) -> None:
    """Refuse names that are not text. protobuf returns such a name as bytes."""
    nodes = [name for node in graph.node for name in (node.name, node.op_type, *node.input, *node.output)]
    for name in [*nodes, *(each.name for each in [*graph.initializer, *graph.input, *graph.output])]:
        if not isinstance(name, str):
            raise ValueError(f"the name {name!r} is not text")


@dataclass
class _Join:
    """An addition whose result is still being followed."""

    name: str
    total: Floats
    branches: list[tuple[Branch, Floats]]
    """Each branch that comes straight from a layer, with the value that it is added to."""
    output_step: float | None = None
    clips_at: tuple[float, float] = (-np.inf, np.inf)
    """Counted in steps."""

    def row(self) -> JoinRow:
        step = float(self.total.unit[0])
        return JoinRow(
            name=self.name,
            step=step,
            low=int(self.total.low[0]),
            high=int(self.total.high[0]),
            output_step=self.output_step,
            rounds=self.output_step is not None and self.output_step > step,
            without_branch_quantiser=self._without_branch_quantiser(),
        )

    def _without_branch_quantiser(self) -> Literal["the same", "may differ"] | None:
        if not self.branches:
            return None
        one_step = self.output_step == self.total.unit[0]
        return "the same" if one_step and all(map(self._indifferent, self.branches)) else "may differ"

    def _indifferent(self, pair: tuple[Branch, Floats]) -> bool:
        """Whether clipping the branch makes no difference.

        Either it is never clipped, or the result is then clipped whatever the branch is added to.
        """
        branch, other = pair
        (low, high), (least, largest) = branch.clips_at, self.clips_at
        below = branch.low >= low or low + float(other.high[0]) <= least
        return below and (branch.high <= high or high + float(other.low[0]) >= largest)


class _Walk:
    """One walk over a graph in the order of computation, and what it found."""

    def __init__(self, graph: onnx.GraphProto, constants: dict[str, Array]) -> None:
        self.graph, self.constants = graph, constants
        self.values: dict[str, Value] = {}
        self.layers: dict[str, LayerRow] = {}
        self.joins: dict[str, _Join] = {}
        self.refusals: list[Refusal] = []
        self.parities: dict[str, tuple[Array, Array]] = {}
        """By layer, for each filter: whether its weights are even, and whether its bias is odd."""
        self.floats_on_bytes: set[str] = set()
        """The layers that multiply bytes by float32 weights."""
        self.sums_of_codes: set[str] = set()
        """Sums over an image of bytes with a zero point, and what layers and joins make of them."""
        self._shapes = {each.name: each.type.tensor_type.shape.dim for each in [*graph.input, *graph.value_info, *graph.output]}

    def run(self) -> None:
        for image in self.graph.input:
            if image.name not in self.constants:
                self._enter(image)
        for node in self.graph.node:
            self._visit(node)
        for output in self.graph.output:
            self._leave(output.name)

    def is_pool(self, name: str) -> bool:
        return name in self.layers and self.layers[name].operation in ("ReduceMean", "ReduceSum")

    def refuse(self, node: NodeProto | str, why: RefusedError) -> None:
        self.refusals.append(Refusal(node=node if isinstance(node, str) else name_of(node), reason=why.reason, remedy=why.remedy))

    def constant(self, node: NodeProto, place: int, default: Array | None = None) -> Array:
        """An input that must be a constant."""
        name = node.input[place] if len(node.input) > place else ""
        if name in self.constants:
            return self.constants[name]
        if name or default is None:
            raise RefusedError(f"computes its input {name!r}, which has to be a constant", ANOTHER_FORM)
        return default

    def scalar(self, node: NodeProto, place: int, default: float | None = None) -> float:
        value = self.constant(node, place, None if default is None else np.array(default))
        if value.size != 1:
            raise RefusedError(f"has {value.size} values as its input {node.input[place]!r}, which has to be one number", ANOTHER_FORM)
        number = float(value.reshape(()))
        if np.isnan(number) or (number == 0 and np.signbit(number)):
            raise RefusedError(
                f"has {number} as its input {node.input[place]!r}, whose bits runtimes do not keep", "give it a number, or 0 without a sign"
            )
        return number

    def step(self, node: NodeProto, place: int) -> float:
        """The step of a whole tensor."""
        step, axes = self.scalar(node, place), self.constant(node, place).ndim
        if axes > 1:
            raise RefusedError(f"has a step of {axes} axes in {node.input[place]!r}, which has to be one number", ANOTHER_FORM)
        require_powers_of_two(node.input[place], np.array([step]))
        return step

    def floats(self, node: NodeProto, place: int = 0) -> Floats:
        value = self.values.get(node.input[place])
        if not isinstance(value, Floats):
            raise RefusedError(f"reads {node.input[place]!r}, which is not float32 values that depend on the image", ANOTHER_FORM)
        return value

    def settled(self, node: NodeProto, place: int = 0) -> Floats:
        """A tensor with one unit, which a layer, join or pool may read."""
        value = self.floats(node, place)
        if len(set(value.unit.tolist())) > 1:
            raise RefusedError(f"reads {node.input[place]!r}, whose channels have different steps", "quantise it first")
        if _is_clipped_beside_its_step(value):
            raise RefusedError(f"reads {node.input[place]!r}, which is clipped beside its step", "quantise it first")
        low, high = np.array([value.low.min()]), np.array([value.high.max()])
        return replace(value, unit=value.unit[:1], low=low, high=high, odd=np.array([bool(value.odd.all())]))

    def moved(self, node: NodeProto, place: int = 0) -> Bytes | Floats:
        """A value whose elements are only moved."""
        value = self.values.get(node.input[place])
        if isinstance(value, Bytes):
            return replace(value, branch=None)
        return replace(self.floats(node, place), branch=None)

    def clip_join(self, name: str, limits: tuple[float, float]) -> None:
        """Note that the rounded result of a join is clipped, with limits in its steps."""
        if name in self.joins:
            self.joins[name].clips_at = _narrowed(self.joins[name].clips_at, limits)

    def exact(self, value: Floats) -> Floats:
        """Refuse what float32 does not hold in full."""
        if value.extent >= EXACT_BELOW:
            raise RefusedError(f"reaches {value.extent:.0f} steps, {EXACT_BELOW} is the limit", FEWER_BITS)
        if not are_normal(value.unit) or not are_normal(value.unit * max(value.extent, 1)):
            raise RefusedError("has steps so small or so large that float32 loses them", ANOTHER_STEP)
        return value

    def size(self, name: str, axis: int) -> int:
        dimensions = self._shapes.get(name, ())
        if axis >= len(dimensions) or not dimensions[axis].HasField("dim_value"):
            raise RefusedError(f"reads {name!r}, whose size {axis} the file does not say", "export it with the batch as its only free size")
        return int(dimensions[axis].dim_value)

    def image_size(self, name: str) -> list[int]:
        """The sizes of all axes behind the channels."""
        return [self.size(name, axis) for axis in range(2, len(self._shapes.get(name, ())))]

    def _enter(self, image: onnx.ValueInfoProto) -> None:
        if image.type.tensor_type.elem_type == onnx.TensorProto.UINT8:
            self.values[image.name] = Bytes(signed=False, low=0, high=255)
        else:
            self.refuse(image.name, RefusedError("is an input that is not uint8", ANOTHER_FORM))

    def _visit(self, node: NodeProto) -> None:
        """Visit a node. If it reads an unknown value, skip it: its source has been refused."""
        known = self.values.keys() | self.constants.keys() | {""}
        try:
            require_form(node)
            if known.issuperset(node.input):
                self.values.update(zip(node.output, OPERATIONS[node.op_type](self, node), strict=True))
        except RefusedError as why:
            self.refuse(node, why)

    def _leave(self, name: str) -> None:
        value = self.values.get(name)
        if not isinstance(value, Floats) and not self.refusals:
            self.refuse(name, RefusedError("is an output that is not float32 values that depend on the image", ANOTHER_FORM))


def _is_clipped_beside_its_step(value: Floats) -> bool:
    return any(np.any(bound % value.unit) for bound in value.clip if np.isfinite(bound))


def require_powers_of_two(name: str, steps: Array) -> None:
    if not are_powers_of_two(steps):
        wrong = next(step for step in steps.ravel().tolist() if not are_powers_of_two(np.array([step])))
        raise RefusedError(f"has the step {wrong!r} in {name!r}, which is not a power of two", "export it again on the exact grid")


def _dequantise(walk: _Walk, node: NodeProto) -> Values:
    value = walk.values.get(node.input[0])
    if not isinstance(value, Bytes):
        return [_stored(walk, node)]
    require_zero_point(node)
    step, zero_point = walk.step(node, 1), int(walk.scalar(node, 2))
    if value.scale not in (None, step) or value.zero_point not in (None, zero_point):
        found = f"scale {step} and zero point {zero_point}"
        raise RefusedError(f"reads bytes with {found} that have {value.scale} and {value.zero_point}", ANOTHER_FORM)
    if value.requantised:
        raise RefusedError("reads bytes that were made of bytes, which ONNX Runtime rounds once instead of twice", "put a Clip between, be it at 255")
    read = floats(step, value.low - zero_point, value.high - zero_point)
    return [replace(walk.exact(read), codes=value, origin=value, branch=value.branch)]


def _stored(walk: _Walk, node: NodeProto) -> StoredIntegers:
    """Weights or biases as integers, with a step for each filter."""
    integers, steps = walk.constant(node, 0), walk.constant(node, 1)
    if walk.constant(node, 2, np.array(0)).any():
        raise RefusedError(f"has a zero point in the constant {node.input[0]!r}", ANOTHER_FORM)
    if not integers.ndim:
        raise RefusedError(f"has {node.input[0]!r}, a single number, where weights or biases are expected", ANOTHER_FORM)
    if steps.size > 1 and (attributes_of(node).get("axis") != 0 or steps.shape != integers.shape[:1]):
        raise RefusedError(f"has steps in {node.input[1]!r} that are not one a filter", ANOTHER_FORM)
    require_powers_of_two(node.input[1], steps)
    return StoredIntegers(integers, np.broadcast_to(steps.astype(np.float64).ravel(), integers.shape[:1]))


def _quantise(walk: _Walk, node: NodeProto) -> Values:
    x, step, zero_points = walk.floats(node), walk.step(node, 1), walk.constant(node, 2)
    if zero_points.dtype not in LIMITS or zero_points.size != 1:
        raise RefusedError(f"quantises to {zero_points.dtype}, x{zero_points.size}; expected one zero point in uint8 or int8", ANOTHER_FORM)
    zero_point, (least, largest) = int(zero_points.reshape(())), LIMITS[zero_points.dtype]
    if zero_point not in (0, (least + largest + 1) // 2):
        raise RefusedError(f"has the zero point {zero_point}, which OpenVINO loses in front of a sum", f"give it 0 or {(least + largest + 1) // 2}")
    if walk.is_pool(x.maker):
        raise RefusedError(f"makes bytes of the pool {x.maker!r}, whose limits OpenVINO leaves out", POOL_AS_LAYER)
    if zero_point and x.maker in walk.sums_of_codes:
        raise RefusedError(f"makes bytes with a zero point of {x.maker!r}, behind a sum over such, which OpenVINO gets wrong", POOL_AS_LAYER)
    if not x.maker and x.origin is not None and x.origin.scale is not None and np.any(x.unit != step):
        raise RefusedError(f"rounds bytes again, from the step {x.unit[0]} to {step}, where OpenVINO rounds once", "give both the same step")
    low, high = least - zero_point, largest - zero_point
    if low < 0:
        _require_room_for_offset(x, node, step)
    _note_rounding(walk, node, x, step, (low, high))
    reach = _reach(x, step)
    lowest, highest = (int(min(max(bound, low), high)) + zero_point for bound in (np.floor(reach[0]), np.ceil(reach[1])))
    branch = _clipped_branch(Branch(*reach) if x.maker in walk.layers and reach[0] < 0 else None, (low, high))
    again = x.codes is not None and x.codes.scale is not None
    return [Bytes(zero_points.dtype == np.int8, lowest, highest, step, zero_point, x.maker, branch, again)]


def _require_room_for_offset(x: Floats, node: NodeProto, step: float) -> None:
    """Refuse a step that leaves OpenVINO too few bits.

    OpenVINO adds the zero point before it rounds. The 8 bits of the code and the bits behind the
    point must fit into one float32.
    """
    if (widest := float((step / x.unit).max())) > WIDEST_STEP:
        raise RefusedError(f"rounds to a step of {widest:.0f} units, {WIDEST_STEP} is the limit beside a zero point", ANOTHER_STEP)


def _round(walk: _Walk, node: NodeProto) -> Values:
    """Round to whole numbers that stay float32. The sum has been divided by the step before."""
    x = walk.floats(node)
    _note_rounding(walk, node, x, 1.0, (-np.inf, np.inf))
    reach = _reach(x, 1.0)
    branch = Branch(*reach) if x.maker in walk.layers and reach[0] < 0 else None
    return [replace(walk.exact(floats(1.0, np.floor(reach[0]), np.ceil(reach[1]))), result_of=x.maker, branch=branch)]


def _reach(x: Floats, step: float) -> tuple[float, float]:
    """The lowest and highest value, in steps."""
    low, high = float((x.low * x.unit).min()), float((x.high * x.unit).max())
    return max(low, x.clip[0]) / step, min(high, x.clip[1]) / step


def _note_rounding(walk: _Walk, node: NodeProto, x: Floats, step: float, limits: tuple[float, float]) -> None:
    """Note a quantiser's step and clip at the layer or join whose sum it rounds.

    A tie is refused by the name of that layer or join.
    """
    if not are_normal(x.unit / step):
        raise RefusedError(f"has a step of {step}, too far from that of what it reads", ANOTHER_STEP)
    if x.maker in walk.floats_on_bytes:
        raise RefusedError(
            f"makes bytes of {x.maker!r}, whose float32 weights on bytes ONNX Runtime then rounds", "store its weights as int8 with steps"
        )
    furthest = max(map(abs, _reach(x, step)))
    if furthest >= WHOLE_BELOW:
        raise RefusedError(f"quantises values that reach {furthest:.0f} steps, {WHOLE_BELOW} is the limit", "give its result a larger step")
    tie = _tie(x, step, walk.parities.get(x.maker))
    if x.maker in walk.layers:
        walk.layers[x.maker] = replace(walk.layers[x.maker], output_step=step / x.factor, ties="possible" if tie else "impossible")
    elif x.maker in walk.joins:
        walk.joins[x.maker].output_step = step / x.factor
        walk.joins[x.maker].clips_at = max(x.clip[0] / step, limits[0]), min(x.clip[1] / step, limits[1])
    if x.maker in walk.joins and np.any(x.unit > step):
        walk.refuse(x.maker, RefusedError(f"is rounded to the step {step / x.factor}, finer than its own", "give it the step of what it joins"))
    if tie:
        walk.refuse(x.maker or node, RefusedError(f"can be half-way between two steps of {step / x.factor}: {tie.why}", tie.remedy))


class _Tie(NamedTuple):
    why: str
    remedy: str = ANOTHER_STEP


def _tie(x: Floats, step: float, parity: tuple[Array, Array] | None) -> _Tie | None:
    """Why a value can be a tie, or None.

    Odd multiples of a unit are ties only if the step is two units. Other multiples can be ties as
    soon as the step is larger than the unit.
    """
    if any((bound / step) % 1 == 0.5 for bound in x.clip if np.isfinite(bound)):
        return _Tie("it is clipped there")
    ratio = step / x.unit
    loose = np.flatnonzero(~x.odd & (ratio > 1))
    if loose.size:
        first = int(loose[0])
        if parity is None:
            return _Tie(f"it joins or adds up values of step {x.unit[first]}")
        return _Tie(f"filter {first} has {'an even bias' if parity[0][first] else 'an odd weight'}", "make its weights even and its bias odd")
    doubled = np.flatnonzero(x.odd & (ratio == 2))
    return _Tie(f"the sums of filter {int(doubled[0])} are odd multiples of {x.unit[doubled[0]]}") if doubled.size else None


def _layer(walk: _Walk, node: NodeProto) -> Values:
    x = walk.settled(node)
    weights, bias = (_parameter(walk, node, place) for place in (1, 2))
    terms = terms_of(x, weights, bias)
    if node.op_type == "Conv":
        require_channels(node, walk.size(node.input[0], 1), shape_of(weights))
    row, faults = layer_row(name_of(node), node.op_type, x, terms)
    walk.layers[row.name] = row
    walk.parities[row.name] = terms.even_weights, terms.odd_bias
    if x.codes is not None and not isinstance(weights, StoredIntegers):
        walk.floats_on_bytes.add(row.name)
    if x.maker in walk.sums_of_codes:
        walk.sums_of_codes.add(row.name)
    for fault in faults:
        walk.refuse(node, fault)
    return [layer_sum(row.name, x, terms)]


def _parameter(walk: _Walk, node: NodeProto, place: int) -> StoredIntegers | Array | None:
    """A weight or bias: integers with steps, or numbers."""
    name = node.input[place] if len(node.input) > place else ""
    value = walk.values.get(name)
    if isinstance(value, Bytes | Floats):
        raise RefusedError(f"multiplies or adds {name!r}, which depends on the image", ANOTHER_FORM)
    return value if isinstance(value, StoredIntegers) else walk.constants.get(name)


def _pool(walk: _Walk, node: NodeProto) -> Values:
    """A sum or mean over the image."""
    x, axes = _pooled(walk, node), walk.constant(node, 1)
    if axes.tolist() != _HEIGHT_AND_WIDTH:
        raise RefusedError(f"reduces the axes {axes.tolist()}, expected {_HEIGHT_AND_WIDTH}", ANOTHER_FORM)
    count = walk.size(node.input[0], 2) * walk.size(node.input[0], 3)
    mean = node.op_type == "ReduceMean"
    if mean and not are_powers_of_two(np.array([float(count)])):
        raise RefusedError(f"is a mean over {count} values, which is not a power of two", "write it as a sum, with the count in the layer behind it")
    row = pooled_row(name_of(node), node.op_type, x, count)
    walk.layers[row.name] = row
    if not mean and x.codes is not None and x.codes.zero_point:
        walk.sums_of_codes.add(row.name)
    never = np.zeros(len(x.unit), np.bool_)
    return [walk.exact(Floats(x.unit / (count if mean else 1), x.low * count, x.high * count, never, maker=row.name))]


def _pooled(walk: _Walk, node: NodeProto) -> Floats:
    """What a pool reads.

    A pool adds up each channel by itself. So it may read a layer's own sums, each with its own
    unit.
    """
    return walk.floats(node) if node.input[0] in walk.layers else walk.settled(node)


def _join(walk: _Walk, node: NodeProto) -> Values:
    one, other = walk.settled(node, 0), walk.settled(node, 1)
    if pools := [each.maker for each in (one, other) if walk.is_pool(each.maker)]:
        raise RefusedError(f"joins the pool {pools[0]!r}, behind which OpenVINO leaves limits of bytes out", POOL_AS_LAYER)
    if one.unit[0] != other.unit[0]:
        raise RefusedError(f"joins values of the steps {one.unit[0]} and {other.unit[0]}", "give them one step, the same as the result's")
    total = replace(floats(float(one.unit[0]), float(one.low[0] + other.low[0]), float(one.high[0] + other.high[0])), maker=name_of(node))
    if not walk.sums_of_codes.isdisjoint((one.maker, other.maker)):
        walk.sums_of_codes.add(total.maker)
    branches = [(a.branch, b) for a, b in ((one, other), (other, one)) if a.branch is not None]
    walk.joins[total.maker] = _Join(total.maker, total, branches)
    return [walk.exact(total)]


def _clip(walk: _Walk, node: NodeProto) -> Values:
    low, high = walk.scalar(node, 1, -np.inf), walk.scalar(node, 2, np.inf)
    value = walk.values.get(node.input[0])
    return [_clipped_bytes(walk, value, low, high) if isinstance(value, Bytes) else _clipped(walk, walk.floats(node), low, high)]


def _clipped_bytes(walk: _Walk, x: Bytes, low: float, high: float) -> Bytes:
    if x.requantised and (x.signed or x.zero_point):
        raise RefusedError("clips bytes of both signs that were made of bytes, which OpenVINO gets wrong", "clip them where they are first made")
    offset = x.zero_point or 0
    limits = low - offset, high - offset
    walk.clip_join(x.result_of, limits)
    low, high = int(min(max(x.low, low), high)), int(max(min(x.high, high), low))
    return replace(x, low=low, high=high, branch=_clipped_branch(x.branch, limits), requantised=False)


def _clipped(walk: _Walk, x: Floats, low: float, high: float) -> Floats:
    limits = low / float(x.unit[0]), high / float(x.unit[0])
    walk.clip_join(x.result_of, limits)
    lowest = np.clip(x.low, np.floor(low / x.unit), np.ceil(high / x.unit))
    highest = np.clip(x.high, np.floor(low / x.unit), np.ceil(high / x.unit))
    return replace(x, low=lowest, high=highest, clip=_narrowed(x.clip, (low, high)), codes=None, branch=_clipped_branch(x.branch, limits))


def _clipped_branch(branch: Branch | None, limits: tuple[float, float]) -> Branch | None:
    """The branch after a clip. A clip that rectifies is part of the function, and never omitted."""
    return None if branch is None or limits[0] >= 0 else replace(branch, clips_at=_narrowed(branch.clips_at, limits))


def _narrowed(one: tuple[float, float], other: tuple[float, float]) -> tuple[float, float]:
    return max(one[0], other[0]), min(one[1], other[1])


def _relu(walk: _Walk, node: NodeProto) -> Values:
    return [_clipped(walk, walk.floats(node), 0.0, np.inf)]


def _cast(walk: _Walk, node: NodeProto) -> Values:
    value = walk.values.get(node.input[0])
    if not isinstance(value, Bytes) or value.scale is not None:
        raise RefusedError("casts something else than the image", ANOTHER_FORM)
    return [replace(floats(1.0, value.low, value.high), origin=value)]


def _subtract(walk: _Walk, node: NodeProto) -> Values:
    x, offset = walk.settled(node), walk.scalar(node, 1)
    if not x.rounded or offset % x.unit[0]:
        raise RefusedError(f"subtracts {offset}, which is not a multiple of the step {x.unit[0]} of a rounded value", ANOTHER_FORM)
    steps = offset / float(x.unit[0])
    return [replace(walk.exact(floats(float(x.unit[0]), float(x.low[0]) - steps, float(x.high[0]) - steps)), origin=x.origin)]


def _scale(walk: _Walk, node: NodeProto) -> Values:
    x, factor = walk.floats(node), walk.step(node, 1)
    clip = x.clip[0] * factor, x.clip[1] * factor
    return [walk.exact(replace(x, unit=x.unit * factor, clip=clip, factor=x.factor * factor, codes=None))]


def _pad(walk: _Walk, node: NodeProto) -> Values:
    x, value = walk.moved(node), walk.scalar(node, 2, 0.0)
    walk.constant(node, 1)
    walk.constant(node, 3, np.array(0))
    if isinstance(x, Bytes):
        return [replace(x, low=min(x.low, int(value)), high=max(x.high, int(value)))]
    if np.any(value % x.unit):
        raise RefusedError(f"pads with {value}, which is not a multiple of the step", ANOTHER_FORM)
    steps, clip = value / x.unit, (min(x.clip[0], value), max(x.clip[1], value))
    return [replace(x, low=np.minimum(x.low, steps), high=np.maximum(x.high, steps), clip=clip, odd=x.odd & (value == 0))]


def _concatenate(walk: _Walk, node: NodeProto) -> Values:
    values = [walk.moved(node, place) for place in range(len(node.input))]
    bytes_ = [value for value in values if isinstance(value, Bytes)]
    if not bytes_:
        return [_side_by_side([value for value in values if isinstance(value, Floats)])]
    forms = {(each.signed, each.scale, each.zero_point) for each in bytes_}
    if len(bytes_) < len(values) or len(forms) > 1:
        raise RefusedError("joins bytes of different steps or zero points", "give them one step and one zero point")
    low, high = min(each.low for each in bytes_), max(each.high for each in bytes_)
    return [replace(bytes_[0], low=low, high=high, result_of="", requantised=False)]


def _side_by_side(values: Sequence[Floats]) -> Floats:
    if not all(value.rounded for value in values):
        raise RefusedError("joins sums that are not rounded", "quantise them first")
    if any(_is_clipped_beside_its_step(value) for value in values):
        raise RefusedError("joins values that are clipped beside their step", "quantise them first")
    parts = {name: np.concatenate([getattr(value, name) for value in values]) for name in ("unit", "low", "high", "odd")}
    codes, origins = _widest([value.codes for value in values]), _widest([value.origin for value in values])
    return Floats(parts["unit"], parts["low"], parts["high"], parts["odd"], codes=codes, origin=origins)


def _widest(codes: Sequence[Bytes | None]) -> Bytes | None:
    """The bytes that reach furthest, if all values are bytes."""
    known = [each for each in codes if each is not None]
    return max(known, key=lambda each: each.seen_up_to) if len(known) == len(codes) else None


def _max_pool(walk: _Walk, node: NodeProto) -> Values:
    require_pixels_in_windows(node, walk.image_size(node.input[0]))
    return _move(walk, node)


def _move(walk: _Walk, node: NodeProto) -> Values:
    return [walk.moved(node)] * len(node.output)


OPERATIONS: dict[str, Callable[[_Walk, NodeProto], Values]] = {
    "Add": _join,
    "Cast": _cast,
    "Clip": _clip,
    "Concat": _concatenate,
    "Conv": _layer,
    "DequantizeLinear": _dequantise,
    "Gemm": _layer,
    "MaxPool": _max_pool,
    "Mul": _scale,
    "QuantizeLinear": _quantise,
    "ReduceMean": _pool,
    "ReduceSum": _pool,
    "Relu": _relu,
    "Round": _round,
    "Pad": _pad,
    "Sub": _subtract,
    **dict.fromkeys(("Flatten", "Identity", "Reshape", "Split", "Transpose"), _move),
}
