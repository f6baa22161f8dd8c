"""Every method on every network: converted, trained for a step, folded, exported and run.

Results must have the same bits in PyTorch and be within the derived budget in ONNX Runtime.

Bits are compared for every pair, because each pair may refuse, overflow or fold wrongly by itself.
A file is run for every pair too, except where it would be the same file or the same blocks again.
The exporter takes seconds, and is spared them like this:

- Pairs whose folded graphs differ only in weights share a file, each with its own weights in it
  (`tests/support/exported_files.py`). `test_a_shared_file_has_the_bits_of_the_pairs_own` shows for
  every method that the shared file computes what the pair's own file does.
- Networks with the same blocks as another (`LIKE`) are run with one method each, in turn, as far
  as TensorRT's parser gets the same file. Of those that differ only in depth, the deepest is run,
  and none where other files show all that is in it (`BETWEEN`).
- Files that no other pair can share (`OF_ITS_OWN`: other layers have weights, or norms stay,
  twenty nodes each) are made from a network without its repeated blocks. It still has each kind
  of block and each size of a norm, and the bits are those of the whole network.
"""

import copy
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import own_networks
import pytest
import torch
from exported_files import ExportedFiles, Shape
from graphs import DEFAULTS, NUM_CLASSES, REFUSED, STARTS_AT_ZERO, images, rewrite, scatter, step, traced
from opened import OpenedBy
from torch import nn
from torch.fx import GraphModule

from deploy.runners.runner import Runner, TensorSpec
from deploy.runners.runtimes import RunOptions, open_file
from deploy.runners.torch import TorchPrecision, TorchRunner
from deploy.verify.links import Chain, Link, Record, Stage
from deploy.verify.run_chain import run_chain
from export.errors import UsageError
from export.graph.fold import fold
from export.graph.layers import not_foldable_parts, training_only_parts_off
from export.onnx import onnx_from_graph
from pipeline.methods import METHODS, RewrittenGraph
from pipeline.networks import FAMILIES, NETWORKS

TORCHVISION = {
    "resnet18": 32,
    "resnet50": 32,
    "squeezenet1_0": 48,
    "squeezenet1_1": 48,
    "shufflenet_v2_x0_5": 32,
    "shufflenet_v2_x1_0": 32,
    "mobilenet_v2": 32,
}
"""The networks, with the size of their images.

`tests/export/graph/test_parts.py` traces torchvision's deeper ResNets, and its VGGs, which take
images of 224 and have 130 million parameters. Our networks of the same layers stand for them here.
"""
OF_A_FAMILY = {"wrn-DEPTH-WIDTH": "wrn-10-2"}
OF_A_USER = tuple(f"own_networks:{name}" for name in own_networks.__all__)
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
"""Networks that are deeper, wider, or have another stem, and the networks with the same blocks."""
BETWEEN = frozenset({"resnet32", "resnet44", "resnet56", "preactresnet101", "torchvision:resnet50", "torchvision:shufflenet_v2_x1_0"})
"""Networks whose files show nothing new.

They have the widths of a shallower and a deeper network, or the stem of one network and the blocks
of another.
"""
OF_ITS_OWN = frozenset({"fixup", "groupnorm"})
"""The methods whose folded graphs have weights in more than convolutions and linear layers."""
FEW, SOME = 2, 8
"""Images for a step and for bits, and images for errors.

With few outputs, the errors of training can all be small by chance, and so can the budget.
"""


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
    """A traced network."""

    shape: Shape
    graph: GraphModule

    def with_method(self, method: str) -> RewrittenGraph:
        return rewrite(copy.deepcopy(self.graph), DEFAULTS[method])

    def trained(self, method: str) -> RewrittenGraph:
        """The network with a method, after a training step."""
        training = self.with_method(method)
        step(training, images(FEW, self.shape), rate=1e-3)
        training.graph.zero_grad()
        if method in STARTS_AT_ZERO:
            scatter(training)  # a step moves nothing but its classifier
        return training


@lru_cache(maxsize=1)  # only one at a time: the largest take a gigabyte
def network_of(name: str) -> Network:
    return Network(SHAPES[name], traced(name, SHAPES[name]))


@lru_cache(maxsize=1)
def without_repetition(name: str) -> Network:
    return Network(SHAPES[name], traced(name, SHAPES[name], drop_repeated_blocks))


def drop_repeated_blocks(network: nn.Module, shape: Shape) -> None:
    """Leave out blocks that are repeated.

    Of the blocks that change no size, one of each kind stays, whatever its width, and so does the
    last block of a sequence.
    """
    kinds: set[str] = set()
    for sequence in [part for part in network.modules() if isinstance(part, nn.Sequential) and all([*block.children()] for block in part)]:
        for name, block in [*sequence.named_children()]:
            kind = re.sub(r"\d+", "", repr(block))
            if keeps_size(network, block, shape):
                if kind in kinds and block is not sequence[-1]:
                    delattr(sequence, name)
                kinds.add(kind)


def keeps_size(network: nn.Module, block: nn.Module, shape: Shape) -> bool:
    sizes: list[tuple[torch.Size, torch.Size]] = []
    hook = block.register_forward_hook(lambda _, given, found: sizes.append((given[0].shape, found.shape)))
    with hook, torch.no_grad():
        network.eval()(torch.zeros(1, *shape))
    ((before, after),) = sizes
    return before == after


class InTraining(nn.Module):
    """A graph that runs in training mode, with everything switched off that only training has."""

    def __init__(self, graph: GraphModule) -> None:
        super().__init__()
        self.graph = graph

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        self.graph.train()
        with training_only_parts_off(self.graph):
            logits: torch.Tensor = self.graph(image)
        return logits


def link_to_file(training: RewrittenGraph, folded: GraphModule, file: Path, shape: Shape) -> Chain:
    """The link from folded graph to file, within the budget from the training graph's own error."""
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
    """Whether the file is run: with every method, or with the method in turn at this network."""
    return network not in LIKE or (network not in BETWEEN and method == method_in_turn(network))


def method_in_turn(network: str) -> str:
    """A method whose file has a form that `tensorrt/test_every_network.py` exports as well.

    In pre-activation networks norms stay in that file as layers.
    """
    methods = [each for each in METHODS if each not in OF_ITS_OWN and network not in REFUSED.get(each, ())]
    return "batchnorm" if network.startswith("preact") else methods[list(LIKE).index(network) % len(methods)]


def outputs_with_the_same_bits(training: RewrittenGraph, folded: GraphModule, batch: torch.Tensor) -> torch.Tensor:
    in_training = InTraining(training.graph)(batch)
    with torch.inference_mode():
        assert torch.equal(in_training, training.graph.eval()(batch))
        assert torch.equal(in_training, folded(batch))
    return in_training


@pytest.mark.parametrize(("method", "network"), PAIRS)
def test_a_pair_is_converted_trained_folded_exported_and_run(method: str, network: str, exported_files: ExportedFiles, tmp_path: Path) -> None:
    training = network_of(network).trained(method)
    folded = fold(training.graph)
    outputs = outputs_with_the_same_bits(training, folded, images(FEW, SHAPES[network], seed=1))
    assert torch.isfinite(outputs).all()
    assert outputs.std() > 0
    if not runs_the_file(method, network):
        return
    if method in OF_ITS_OWN:
        sizes = sizes_of_norms(training.graph)
        training = without_repetition(network).trained(method)
        folded = fold(training.graph)
        assert sizes_of_norms(training.graph) == sizes
    file, batch = tmp_path / "model.onnx", {"image": images(SOME, SHAPES[network], seed=1).numpy()}
    file.write_bytes(exported_files.file_of(folded, SHAPES[network]))
    (link,) = run_chain(link_to_file(training, folded, file, SHAPES[network]), lambda: [batch], Record()).links
    file.unlink()  # pytest keeps its folders, and the largest file takes 230 MB
    assert (link.status, link.reason) == ("passed", "")


def sizes_of_norms(graph: GraphModule) -> set[tuple[str, tuple[int, ...]]]:
    """What decides which nodes a norm becomes: its channels and groups, and its input's sizes."""
    norms = not_foldable_parts(graph)
    return {(repr(norms[str(node.target)]), tuple(node.meta["tensor_meta"].shape[1:])) for node in graph.graph.nodes if str(node.target) in norms}


@pytest.mark.parametrize(("method", "network"), REFUSED_PAIRS)
def test_a_pair_that_makes_no_sense_is_refused_in_one_line(method: str, network: str) -> None:
    with pytest.raises(UsageError) as caught:
        network_of(network).with_method(method)
    assert f"method {method} " in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_method_and_network_is_here() -> None:
    assert set(REFUSED) | STARTS_AT_ZERO | OF_ITS_OWN <= set(METHODS)
    assert set(OF_A_FAMILY) == {family.form for family in FAMILIES}
    assert {network for _, network in REFUSED_PAIRS} <= set(SHAPES)
    assert set(LIKE) <= set(SHAPES)
    assert set(LIKE.values()) <= set(SHAPES) - set(LIKE)
    assert set(LIKE) >= BETWEEN


@pytest.mark.parametrize("method", METHODS)
def test_a_shared_file_has_the_bits_of_the_pairs_own(method: str, exported_files: ExportedFiles, tmp_path: Path) -> None:
    """The file holds the pair's own weights and no others.

    ONNX Runtime computes from it what it computes from the exporter's file of this very pair.
    """
    network = Network(SHAPES["small"], traced("small", SHAPES["small"]))
    training = network.with_method(method)
    step(training, images(FEW, network.shape))
    if method in STARTS_AT_ZERO:
        scatter(training)
    folded = fold(training.graph)
    batch = {"image": images(SOME, network.shape, seed=1).numpy()}
    outputs = []
    for data in (exported_files.file_of(folded, network.shape), onnx_from_graph(folded, network.shape, {})):
        path = tmp_path / "model.onnx"
        path.write_bytes(data)
        with open_file("onnxruntime-cpu", path, RunOptions(optimisation="none", threads=1)) as runner:
            outputs.append(runner.run(batch)["logits"])
    assert outputs[0].tobytes() == outputs[1].tobytes()
