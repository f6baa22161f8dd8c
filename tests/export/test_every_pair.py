"""Every method on every network: converted, trained for a step, folded, exported and run. Bits in PyTorch, the derived budget in ONNX Runtime.

Bits are compared for every pair. Exporting takes seconds, so it is done once per network and form of its graph: pairs whose folded graphs differ
in nothing but weights, and in which layers have biases, share a file, each with its own weights in it; that nothing is lost by it shows
`test_a_shared_file_has_the_bits_of_the_pairs_own`. Networks of the same blocks as another (`LIKE`) are run with one method each, in turn.
"""

import copy
from dataclasses import dataclass, field
from functools import cache, lru_cache
from pathlib import Path

import onnx
import pytest
import torch
from graphs import DEFAULTS, NUM_CLASSES, REFUSED, STARTS_AT_ZERO, images, rewrite, scatter, step, traced
from onnx import numpy_helper
from opened import OpenedBy
from torch import nn
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from deploy.runners.base import Runner, TensorSpec
from deploy.runners.table import RunOptions, open_file
from deploy.runners.torch import TorchPrecision, TorchRunner
from deploy.verify.links import Chain, Link, Record, Stage
from deploy.verify.run import run_chain
from export.errors import UsageError
from export.fold import fold
from export.layers import training_only_parts_off
from export.onnx import onnx_from_graph
from export.operations import step_at
from pipeline.methods import METHODS, RewrittenGraph
from pipeline.networks import FAMILIES, NETWORKS

Shape = tuple[int, int, int]
LAYERS = (nn.Conv2d, nn.Linear)
TORCHVISION = {
    "resnet18": 32,
    "resnet50": 32,
    "squeezenet1_0": 48,
    "squeezenet1_1": 48,
    "shufflenet_v2_x0_5": 32,
    "shufflenet_v2_x1_0": 32,
    "mobilenet_v2": 32,
}
"""With the size of the images. `tests/pipeline/graph/test_parts.py` traces its deeper ResNets, and its VGGs, which take images of 224 and have
130 million parameters; ours of the same layers stand for them here."""
OF_A_FAMILY = {"wrn-DEPTH-WIDTH": "wrn-10-2"}
OF_A_USER = ("own_networks:leaky",)
"""With kinds of layers that no network of ours has."""
LIKE = {
    **dict.fromkeys(("resnet32", "resnet44", "resnet56", "resnet110"), "resnet20"),
    "resnet34": "resnet18",
    "resnet101": "resnet50",
    "preactresnet34": "preactresnet18",
    **dict.fromkeys(("preactresnet101", "preactresnet152"), "preactresnet50"),
    "wrn20": "wrn-10-2",
    "vgg16": "vgg11",
    **dict.fromkeys(("shufflenetv2_x1_0", "torchvision:shufflenet_v2_x0_5", "torchvision:shufflenet_v2_x1_0"), "shufflenetv2_x0_5"),
    "torchvision:resnet50": "resnet50",
    "torchvision:squeezenet1_0": "torchvision:squeezenet1_1",
    "torchvision:mobilenet_v2": "mobilenetv2",
}
"""Deeper, wider, or with another stem: networks, and those of whose blocks they are made."""
FEW, SOME = 2, 16
"""Images for a step and for bits, and for errors: of few outputs, those of training can all be small by chance, and the budget with them."""


def _shapes() -> dict[str, Shape]:
    own = {name: (3, 32, 32) if name.startswith("vgg") else (3, 16, 16) for name in [*NETWORKS, *OF_A_FAMILY.values(), *OF_A_USER]}
    return {**own, "small": (1, 8, 8), **{f"torchvision:{name}": (3, size, size) for name, size in TORCHVISION.items()}}


SHAPES: dict[str, Shape] = _shapes()
LARGE = frozenset({"resnet101", "preactresnet101", "preactresnet152"})
PAIRS = [
    pytest.param(method, network, marks=pytest.mark.slow if network in LARGE else ())
    for network in SHAPES
    for method in METHODS
    if network not in REFUSED.get(method, ())
]
REFUSED_PAIRS = [(method, network) for method, networks in REFUSED.items() for network in sorted(networks)]


@dataclass(frozen=True)
class Network:
    """A traced network, and the files of the forms that its folded graphs have had."""

    shape: Shape
    graph: GraphModule
    files: dict[object, bytes] = field(default_factory=dict)

    def with_method(self, method: str) -> RewrittenGraph:
        return rewrite(copy.deepcopy(self.graph), DEFAULTS[method])

    def shared_file_of(self, folded: GraphModule) -> bytes:
        """The folded graph as an ONNX file that others of its form share; by itself where other layers have weights too: those lose their names."""
        if any(not isinstance(layer, LAYERS) for layer in folded.modules() if [*layer.parameters(recurse=False)]):
            return onnx_from_graph(folded, self.shape, {})
        form = form_of(folded)
        if form not in self.files:
            self.files[form] = onnx_from_graph(as_template(folded), self.shape, {})
        return with_weights(self.files[form], folded)


@lru_cache(maxsize=1)  # one after the other: the largest take a gigabyte
def network_of(name: str) -> Network:
    return Network(SHAPES[name], traced(name, SHAPES[name]))


def form_of(folded: GraphModule) -> object:
    """What of a folded graph decides on the nodes of its file: layers in order, what they read, sizes and constants; not weights and biases."""
    position = {node: number for number, node in enumerate(folded.graph.nodes)}
    return tuple((_kind(folded, node), tuple(position[each] for each in node.all_input_nodes), _constants(node)) for node in folded.graph.nodes)


def _kind(folded: GraphModule, node: Node) -> str:
    step = step_at(folded, node)
    if step.kind == "rectifier":
        return repr(step.as_layer())
    return f"{node.target} {_layer(folded, node)}" if node.op == "call_module" else str(node.target)


def _layer(folded: GraphModule, node: Node) -> str:
    return repr(folded.get_submodule(str(node.target))).replace(", bias=False", "") if node.op == "call_module" else str(node.target)


def _constants(node: Node) -> str:
    return str(map_arg((node.args, node.kwargs), lambda _: None))


def as_template(folded: GraphModule) -> GraphModule:
    """A copy in which every layer has a bias, and no two tensors are alike or zero, so that the exporter leaves nothing out and merges nothing."""
    template, generator = copy.deepcopy(folded), torch.Generator().manual_seed(0)
    for layer in template.modules():
        if isinstance(layer, LAYERS):
            layer.bias = nn.Parameter(torch.empty(layer.weight.shape[0]), requires_grad=False)
    for tensor in template.state_dict().values():
        tensor.uniform_(1, 2, generator=generator)
    return template


def with_weights(file: bytes, folded: GraphModule) -> bytes:
    """The file with the weights of this folded graph, and zeros for the biases that it has not."""
    model, weights = onnx.load_model_from_string(file), folded.state_dict()
    missing = set(weights) - {tensor.name for tensor in model.graph.initializer}
    assert not missing, f"the file has no place for {missing}"
    layers = {name for name, layer in folded.named_modules() if isinstance(layer, LAYERS)}
    for tensor in model.graph.initializer:
        if tensor.name in weights:
            tensor.CopyFrom(numpy_helper.from_array(weights[tensor.name].numpy(), tensor.name))
        elif tensor.name.removesuffix(".bias") in layers:
            tensor.CopyFrom(numpy_helper.from_array(0 * numpy_helper.to_array(tensor), tensor.name))
    return model.SerializeToString(deterministic=True)


class InTraining(nn.Module):
    """A graph that runs in training mode, with what only training has switched off."""

    def __init__(self, graph: GraphModule) -> None:
        super().__init__()
        self.graph = graph

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        self.graph.train()
        with training_only_parts_off(self.graph):
            logits: torch.Tensor = self.graph(image)
        return logits


def link_to_file(training: RewrittenGraph, folded: GraphModule, file: Path, shape: Shape) -> Chain:
    """The folded graph and the file, within the budget that the training graph's own error gives."""
    specs = (TensorSpec("image", "uint8", (None, *shape)),), (TensorSpec("logits", "float32", (None, NUM_CLASSES)),)

    def stage(name: str, module: nn.Module, *, gradients: bool = False, precision: TorchPrecision = "float32") -> Stage:
        def opened() -> Runner:
            return TorchRunner(module, *specs, name=name, gradients=gradients, precision=precision)

        return Stage(name=name, form=OpenedBy(runtime="torch", precision=precision, opener=opened), invariance_required=None)

    def opened() -> Runner:
        return open_file("onnxruntime-cpu", file, RunOptions(threads=1))

    of_file = Stage(name="file", form=OpenedBy(runtime="onnxruntime-cpu", precision="float32", opener=opened), invariance_required=None)
    return Chain(
        stages=(stage("training", InTraining(training.graph), gradients=True), stage("folded", folded), of_file),
        links=(Link("folded", "file", "budget"),),
        reference=stage("float64", folded, precision="float64"),
        training="training",
    )


def runs_the_file(method: str, network: str) -> bool:
    """With every method, or with the one whose turn it is at this network."""
    methods = [each for each in METHODS if network not in REFUSED.get(each, ())]
    return network not in LIKE or method == methods[list(LIKE).index(network) % len(methods)]


@pytest.mark.parametrize(("method", "network"), PAIRS)
def test_a_pair_is_converted_trained_folded_exported_and_run(method: str, network: str, tmp_path: Path) -> None:
    found, file = network_of(network), tmp_path / "model.onnx"
    training = found.with_method(method)
    step(training, images(FEW, found.shape), rate=1e-3)
    training.graph.zero_grad()
    if method in STARTS_AT_ZERO:
        scatter(training)  # a step moves nothing of it but the classifier
    runs = runs_the_file(method, network)
    folded, batch = fold(training.graph), images(SOME if runs else FEW, found.shape, seed=1)
    in_training = InTraining(training.graph)(batch)
    assert torch.isfinite(in_training).all()
    assert in_training.std() > 0
    with torch.inference_mode():
        assert torch.equal(in_training, training.graph.eval()(batch))
        assert torch.equal(in_training, folded(batch))
    if runs:
        file.write_bytes(onnx_from_graph(folded, found.shape, {}) if network in LIKE else found.shared_file_of(folded))
        (link,) = run_chain(link_to_file(training, folded, file, found.shape), lambda: [{"image": batch.numpy()}], Record()).links
        file.unlink()  # pytest keeps its folders, and the largest file has 230 MB
        assert (link.status, link.reason) == ("passed", "")


@pytest.mark.parametrize(("method", "network"), REFUSED_PAIRS)
def test_a_pair_that_makes_no_sense_is_refused_in_one_line(method: str, network: str) -> None:
    with pytest.raises(UsageError) as caught:
        network_of(network).with_method(method)
    assert f"method {method} " in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_method_and_network_is_here() -> None:
    assert set(DEFAULTS) == set(METHODS)
    assert set(OF_A_FAMILY) == {family.form for family in FAMILIES}
    assert {network for _, network in REFUSED_PAIRS} <= set(SHAPES)
    assert set(LIKE) <= set(SHAPES)
    assert set(LIKE.values()) <= set(SHAPES) - set(LIKE)


@cache
def _small_in_one_file() -> Network:
    return Network(SHAPES["small"], traced("small", SHAPES["small"]))


@pytest.mark.parametrize("method", METHODS)
def test_a_shared_file_has_the_bits_of_the_pairs_own(method: str, tmp_path: Path) -> None:
    """The pair's own weights are in it, and no others: what ONNX Runtime computes is what it computes on the exporter's file of this very pair."""
    network = _small_in_one_file()
    training = network.with_method(method)
    step(training, images(FEW, network.shape))
    if method in STARTS_AT_ZERO:
        scatter(training)
    folded = fold(training.graph)
    batch = {"image": images(SOME, network.shape, seed=1).numpy()}
    outputs = []
    for data in (network.shared_file_of(folded), onnx_from_graph(folded, network.shape, {})):
        path = tmp_path / "model.onnx"
        path.write_bytes(data)
        with open_file("onnxruntime-cpu", path, RunOptions(optimisation="none", threads=1)) as runner:
            outputs.append(runner.run(batch)["logits"])
    assert outputs[0].tobytes() == outputs[1].tobytes()
