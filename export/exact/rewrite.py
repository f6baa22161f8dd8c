"""Rewrites a trained graph onto the grid: quantisers where values are rounded, integer weights.

Takes a plain or derived graph. What has no place on the grid is refused by the node's name.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from torch import nn
from torch.fx import GraphModule, Node

from export.exact.grid import (
    LARGEST_WEIGHT_ON_SIGNED,
    SIGNED,
    UNSIGNED,
    BorrowedWeights,
    GridBits,
    GridGraph,
    GridLayer,
    GridWeights,
    Kind,
    MeanWeights,
    Pixels,
    PixelWeights,
    PixelwiseLinear,
    PooledSum,
    Quantise,
    ScaledDerivation,
    is_power_of_two,
)
from export.exact.roles import ceiling_of, off_the_grid, only_reader_through_moves, reaches_output, role_of, window_of
from export.graph.fold import leave_training
from export.graph.layers import Derivation, DerivedConv2d, DerivedLayer, DerivedLinear, GlobalAveragePool, LayerKind, Normalise, derived, filter_kind
from export.graph.operations import Role, step_at
from export.graph.rewriting import bypass, finish, image_size_of, insert_between, insert_in_front, note_shapes, replace_layer, shape_of

LARGEST_IN_TF32 = 2**11
"""TF32 keeps 11 bits of each number that it multiplies."""


def classify_each_pixel(graph: GraphModule, largest: int) -> frozenset[Node]:
    """Put classifiers in front of the pools whose sums TF32 would round; return these pools.

    The sums are of values up to `largest`. Pool and classifier are linear: the function stays.
    """
    pools = [node for node in graph.graph.nodes if role_of(graph, node) == "global average"]
    return frozenset(node for node in pools if _has_wide_sums(node, largest) and _classified_in_front(graph, node))


def _has_wide_sums(pool: Node, largest: int) -> bool:
    return math.prod(image_size_of(pool.all_input_nodes[0])) * largest > LARGEST_IN_TF32


def _classified_in_front(graph: GraphModule, pool: Node) -> bool:
    """Whether a linear classifier stood behind the pool. If so, it now stands in front of it."""
    reader = only_reader_through_moves(graph, pool)
    between = [] if reader is None else _moves_between(pool, reader)
    if (
        reader is None
        or role_of(graph, reader) != "layer"
        or not reaches_output(graph, reader)
        or any(step_at(graph, each).kind != "flattening" for each in between)
    ):
        return False
    linear = _derived(graph.get_submodule(str(reader.target)))
    if not isinstance(linear, DerivedLinear):
        return False
    bypass(graph, reader)  # removed first, because the new node takes its name
    insert_in_front(graph, pool, str(reader.target), _on_each_pixel(linear.derivation))
    graph.recompile()
    return True


def _derived(layer: nn.Module) -> DerivedLayer:
    """The layer with a derivation. A plain layer lends its own weights."""
    if isinstance(layer, (DerivedConv2d, DerivedLinear)):
        return layer
    assert isinstance(layer, (nn.Conv2d, nn.Linear))
    return derived(layer, BorrowedWeights(layer.weight, layer.bias))


def _on_each_pixel(derivation: Derivation) -> DerivedConv2d:
    num_filters, num_channels = derivation()[0].shape
    return DerivedConv2d(nn.Conv2d(num_channels, num_filters, 1, device="meta"), PixelwiseLinear(derivation))


def _moves_between(node: Node, reader: Node) -> list[Node]:
    found: list[Node] = []
    while (node := next(iter(node.users))) is not reader:
        found.append(node)
    return found


_PIXELS = "pixels"


def grid_graph(graph: GraphModule, image_shape: tuple[int, int, int], bits: GridBits) -> GridGraph:
    """Rewrite a training graph in place. What has no exact form is refused by name."""
    leave_training(graph, lambda layer: layer.evaluated())
    note_shapes(graph, image_shape)
    if pools_behind := classify_each_pixel(graph, bits.rectified[1]):
        note_shapes(graph, image_shape)
    placing = _GridWalk(graph, bits, pools_behind)
    for node in list(graph.graph.nodes):
        placing.place(node)
    finish(graph)
    return placing.result()


@dataclass(frozen=True)
class _Value:
    """What a node yields: an unrounded sum, a value on the grid, a global pool's sum, or logits."""

    kind: Literal["sum", "grid", "wide", "logits"]
    group: str | None = None
    low: int = 0
    high: int = 0
    factor: float = 1.0

    @property
    def signed(self) -> bool:
        return self.low < 0


@dataclass
class _Draft:
    """A layer whose derivation is still being assembled."""

    node: Node
    kind: Kind
    layer: DerivedLayer
    derivation: Derivation
    source: _Value
    target: str | None = None


class _GridWalk:
    """One walk over the graph, in the order of computation."""

    def __init__(self, graph: GraphModule, bits: GridBits, pools_behind: frozenset[Node]) -> None:
        self.graph, self.bits, self.pools_behind = graph, bits, pools_behind
        self.values: dict[Node, _Value] = {}
        self.drafts: dict[Node, _Draft] = {}
        self.quantisers: dict[str, Quantise] = {}
        self.groups = _Groups()
        self.pixels: Pixels | None = None
        self.normalise: Normalise | None = None
        self.by_role: dict[Role, Callable[[Node], None]] = {
            "pixels": self._pixels,
            "layer": self._layer,
            "add": self._add,
            "rectify": self._rectify,
            "average": self._average,
            "global average": self._global_average,
            "move": self._move,
            "output": self._output,
        }

    def place(self, node: Node) -> None:
        role = role_of(self.graph, node)
        if role in self.by_role:
            self.by_role[role](node)

    def result(self) -> GridGraph:
        assert self.pixels is not None
        layers = tuple(self._finished(draft) for draft in self.drafts.values())
        members: dict[str, list[Quantise]] = {}
        for name, quantiser in self.quantisers.items():
            members.setdefault(self.groups.of(name), []).append(quantiser)
        return GridGraph(self.graph, layers, {group: tuple(each) for group, each in members.items()}, self.pixels)

    def _finished(self, draft: _Draft) -> GridLayer:
        source = draft.source
        limit = self._limit(draft)
        draft.layer.derivation = GridWeights(draft.derivation, limit)
        return GridLayer(
            name=str(draft.node.target),
            kind=draft.kind,
            source=self.groups.of(_group(source)),
            source_factor=source.factor,
            signed_input=source.signed,
            largest_input=max(-source.low, source.high),
            target=None if draft.target is None else self.groups.of(draft.target),
            layer=draft.layer,
            positions=math.prod(image_size_of(draft.node)) if self._is_in_front_of_its_pool(draft.node) else 1,
        )

    def _limit(self, draft: _Draft) -> int:
        """An even limit, small enough for kernels that add pairs of products in 16 bits.

        These kernels matter where the input reaches beyond 0..127.
        """
        limit = 2 ** (self.bits.of(draft.kind) - 1) - 2
        beyond = draft.source.signed or draft.source.high > UNSIGNED[1]
        return min(limit, LARGEST_WEIGHT_ON_SIGNED) if beyond and draft.source.kind == "grid" else limit

    def _pixels(self, node: Node) -> None:
        normalise = self.graph.get_submodule(str(node.target))
        assert isinstance(normalise, Normalise)
        offset = min(255, max(0, round(normalise.mean.mean().item())))
        step = 2.0 ** -round(math.log2(normalise.deviation.mean().item()))  # a power of two near 1 / deviation
        self.normalise, self.pixels = normalise, Pixels(offset, step).to(normalise.mean.device)
        replace_layer(self.graph, node, self.pixels)
        self.groups.add(_PIXELS)
        self.values[node] = _Value("grid", _PIXELS, -offset, 255 - offset)

    def _layer(self, node: Node) -> None:
        (before,) = node.all_input_nodes
        source = self._settled(before)
        layer = _derived(self.graph.get_submodule(str(node.target)))
        replace_layer(self.graph, node, layer)
        is_last = reaches_output(self.graph, node) or self._is_in_front_of_its_pool(node)
        draft = _Draft(node, _kind(layer, source, is_last=is_last), layer, layer.derivation, source)
        if source.group == _PIXELS:
            draft.derivation = self._for_pixels(draft)
        if source.kind == "wide" and not is_power_of_two(count := self._count(node)):
            draft.derivation = ScaledDerivation(draft.derivation, 1 / count, on_bias=False)
        self.drafts[node] = draft
        self.values[node] = _Value("logits") if is_last else self._summed(node, SIGNED, None)

    def _is_in_front_of_its_pool(self, node: Node) -> bool:
        return not self.pools_behind.isdisjoint(node.users)

    def _for_pixels(self, draft: _Draft) -> Derivation:
        assert self.pixels is not None
        assert self.normalise is not None
        mean, deviation = self.normalise.mean.flatten(), self.normalise.deviation.flatten()
        gain, shift = 1 / (deviation * self.pixels.step), (self.pixels.offset - mean) / deviation
        if bool((gain == 1).all()) and bool((shift == 0).all()):
            return draft.derivation
        if draft.derivation()[0].shape[1:2] != gain.shape:
            raise off_the_grid(draft.node, "it does not read the image's channels one by one, which are normalised each in its own way")
        return PixelWeights(draft.derivation, gain, shift)

    def _add(self, node: Node) -> None:
        values = [self._settled(before) for before in node.all_input_nodes]
        if len(values) != 2 or any(value.kind != "grid" for value in values):
            raise off_the_grid(node, "an addition must join two values of the network")
        group = self._joined(node, values)
        low, high = sum(value.low for value in values), sum(value.high for value in values)
        self.values[node] = self._summed(node, SIGNED if low < 0 else self.bits.rectified, group, _Value("sum", group, low, high))

    def _rectify(self, node: Node) -> None:
        (before,) = node.all_input_nodes
        value = self.values[before]
        if value.kind not in ("sum", "grid"):
            raise off_the_grid(node, "it rectifies a value that is not rounded")
        quantiser = self._insert(node, [], Quantise(self.bits.rectified, ceiling_of(self.graph, node)), value.group)
        if value.kind == "sum" and before in self.drafts:
            self.drafts[before].target = quantiser.name
        self._take_over(node, quantiser)

    def _average(self, node: Node) -> None:
        """Write the average as a depthwise convolution.

        The sums of such a layer are odd like all others, so rounding the mean is never a tie.
        """
        (before,) = node.all_input_nodes
        source, window, channels = self._settled(before), window_of(self.graph, node), shape_of(node)[1]
        if window.is_one_pixel:
            bypass(self.graph, node)
            return
        like = nn.Conv2d(channels, channels, window.kernel, window.stride, window.padding, groups=channels, bias=False, device="meta")
        layer = DerivedConv2d(like, MeanWeights(channels, window.kernel).to(next(self.graph.buffers()).device))
        mean = insert_in_front(self.graph, node, f"mean_{node.name}", layer)
        mean.meta = dict(node.meta)
        bypass(self.graph, node)
        self.drafts[mean] = _Draft(mean, "mean", layer, layer.derivation, source)
        self.values[mean] = self._summed(mean, SIGNED if source.signed else self.bits.rectified, None)

    def _global_average(self, node: Node) -> None:
        (before,) = node.all_input_nodes
        if node in self.pools_behind:
            self._average_of_logits(node, self.drafts[before])
            return
        source = self._settled(before)
        count = math.prod(image_size_of(before))
        reader = only_reader_through_moves(self.graph, node)
        if source.kind != "grid" or reader is None or not self._takes_sums(reader, signed=source.signed, count=count):
            self._average_over_all(node)
            return
        wide = _Value("wide", source.group, source.low * count, source.high * count, 1 / count)
        if not is_power_of_two(count):
            at_output = role_of(self.graph, reader) == "output"
            # The power of two goes into the pool. What is left goes into the layer in front of it.
            factor = 2.0 ** -math.ceil(math.log2(count)) if at_output else 1.0
            if at_output:
                self._give_back(node, 1 / (factor * count))
            replace_layer(self.graph, node, PooledSum(factor))
            wide = _Value("wide", source.group, wide.low, wide.high, factor)
        self.values[node] = wide

    def _takes_sums(self, reader: Node, *, signed: bool, count: int) -> bool:
        """Whether the reader can take a pool's wide sums.

        Behind wide sums of signed bytes OpenVINO gets the zero point of whatever is rounded wrong.
        """
        if role_of(self.graph, reader) != "layer":
            return role_of(self.graph, reader) == "output"
        return not signed or is_power_of_two(count) or reaches_output(self.graph, reader)

    def _average_of_logits(self, node: Node, classifier: _Draft) -> None:
        """Average each pixel's logits. Nothing is rounded between a classifier and this pool."""
        count = math.prod(image_size_of(classifier.node))
        if not is_power_of_two(count):
            factor = 2.0 ** -math.ceil(math.log2(count))
            classifier.derivation = ScaledDerivation(classifier.derivation, 1 / (factor * count), on_bias=True)
            replace_layer(self.graph, node, PooledSum(factor))
        self.values[node] = self.values[classifier.node]

    def _average_over_all(self, node: Node) -> None:
        """Write a pool that the network goes on from as a convolution over the whole image."""
        replace_layer(self.graph, node, nn.AvgPool2d(image_size_of(node.all_input_nodes[0])))
        self._average(node)

    def _give_back(self, node: Node, factor: float) -> None:
        """Give the layer in front of a sum the factor that makes the sum a mean.

        A rectifier in between lets a factor through.
        """
        (before,) = node.all_input_nodes
        while before not in self.drafts:
            if len(before.all_input_nodes) != 1 or not (before.name in self.quantisers or role_of(self.graph, before) == "move"):
                raise off_the_grid(node, "the mean that is the network's output does not follow its classifier")
            (before,) = before.all_input_nodes
        draft = self.drafts[before]
        draft.derivation = ScaledDerivation(draft.derivation, factor, on_bias=True)

    def _move(self, node: Node) -> None:
        values = [self._rounded(before) for before in node.all_input_nodes if before in self.values]
        if len(values) == 1:
            self.values[node] = values[0]
            return
        if any(value.kind != "grid" for value in values):
            raise off_the_grid(node, "it concatenates values that are not rounded")
        group = self._joined(node, values)
        low, high = min(value.low for value in values), max(value.high for value in values)
        if low < 0 and high > SIGNED[1]:
            self._clip_to_one_byte(node, group)
        self.values[node] = _Value("grid", group, low, high if low >= 0 else min(high, SIGNED[1]))

    def _clip_to_one_byte(self, node: Node, group: str) -> None:
        """Clip values of 8 unsigned bits where they join signed bytes, which cannot hold them."""
        for before in node.all_input_nodes:
            if self.values[before].high > SIGNED[1]:
                self._insert(before, [node], Quantise(UNSIGNED), group)

    def _output(self, node: Node) -> None:
        (before,) = node.all_input_nodes
        if self.values[before].kind not in ("logits", "wide"):
            raise off_the_grid(node, "the logits must come from a classifier layer, with at most an average behind it")

    def _joined(self, node: Node, values: Iterable[_Value]) -> str:
        groups = [_group(value) for value in values]
        if _PIXELS in groups:
            raise off_the_grid(node, "it joins the image with values of the network")
        for group in groups[1:]:
            self.groups.unite(groups[0], group)
        return groups[0]

    def _summed(self, node: Node, limits: tuple[int, int], group: str | None, unrounded: _Value | None = None) -> _Value:
        """Have a sum rounded: by the rectifier if nothing else reads it, or by a quantiser."""
        readers = list(node.users)
        if len(readers) == 1 and role_of(self.graph, readers[0]) == "rectify":
            return unrounded or _Value("sum", group)
        quantiser = self._insert(node, readers, Quantise(limits), group)
        if node in self.drafts:
            self.drafts[node].target = quantiser.name
        return unrounded or _Value("sum", group)

    def _insert(self, node: Node, readers: Iterable[Node], quantiser: Quantise, group: str | None) -> Node:
        """Insert a quantiser between a node and readers of it.

        Its value is on the grid of the given group, or of a group of its own.
        """
        inserted = insert_between(self.graph, node, readers, f"grid_{node.name}", quantiser.to(next(self.graph.buffers()).device))
        self.quantisers[inserted.name] = quantiser
        self.groups.add(inserted.name)
        if group is not None:
            self.groups.unite(group, inserted.name)
        self.values[inserted] = _Value("grid", inserted.name, quantiser.low, quantiser._high)
        return inserted

    def _take_over(self, node: Node, quantiser: Node) -> None:
        """Remove the rectifier in front of a quantiser, because the quantiser rectifies too."""
        (before,) = node.all_input_nodes
        node.replace_all_uses_with(quantiser, delete_user_cb=lambda user: user is not quantiser)
        quantiser.replace_input_with(node, before)
        self.graph.graph.erase_node(node)

    def _settled(self, node: Node) -> _Value:
        """The value of a node that a layer, join or pool reads."""
        value = self._rounded(node)
        if value.kind == "logits":
            raise off_the_grid(node, "the network goes on behind its classifier")
        return value

    def _rounded(self, node: Node) -> _Value:
        """The value of a node that is read.

        Where a sum got a quantiser of its own, its readers read the quantiser instead.
        """
        value = self.values[node]
        if value.kind == "sum":
            raise off_the_grid(node, "its sum is read before it is rounded")
        return value

    def _count(self, node: Node) -> int:
        """How many pixels the pool in front of a layer averages."""
        (before,) = node.all_input_nodes
        while not isinstance(step_at(self.graph, before).layer, (GlobalAveragePool, PooledSum)):
            (before,) = before.all_input_nodes
        return math.prod(image_size_of(before.all_input_nodes[0]))


class _Groups:
    """Which values share a step: unions of names, each known by the first name in it."""

    def __init__(self) -> None:
        self._above: dict[str, str] = {}

    def add(self, name: str) -> None:
        self._above[name] = name

    def of(self, name: str) -> str:
        while self._above[name] != name:
            name = self._above[name]
        return name

    def unite(self, one: str, other: str) -> None:
        first, second = self.of(one), self.of(other)
        if first != second:
            self._above[second] = first


def _group(value: _Value) -> str:
    assert value.group is not None
    return value.group


def _kind(layer: DerivedLayer, source: _Value, *, is_last: bool) -> LayerKind:
    if is_last:
        return "classifier"
    return "first" if source.group == _PIXELS else filter_kind(layer)
