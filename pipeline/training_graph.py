"""Turn a config into its training graph: trace the network and rewrite it by the method.

Also puts the graph onto the integer grid. Takes names and numbers; touches no data set and no
files. Used before training and to rebuild a bundle's graph.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.fx import GraphModule

from export.exact.grid import GridBits, GridGraph
from export.exact.rewrite import grid_graph
from export.graph import Normalise, trace
from pipeline.config import Config
from pipeline.methods import RewrittenGraph, method_from_options
from pipeline.networks import network_by_name
from pipeline.training.mixup import insert_mixup

_INITIALISATION = 0x696E6974
"""The letters "init" in ASCII. It separates the draws of the initial weights from those of the
steps, which have the same seed."""


@dataclass(frozen=True)
class ImageFacts:
    """What a network must know about the images.

    These are their shape, the number of classes, and how raw pixels become its input.
    """

    shape: tuple[int, int, int]
    num_classes: int
    mean: tuple[float, ...]
    deviation: tuple[float, ...]


def training_graph(config: Config, images: ImageFacts, prepare: Callable[[nn.Module], None] = lambda network: None) -> RewrittenGraph:
    """Return the training graph of a config, with new weights drawn from the config's seed on the
    CPU.

    It is the same on every machine. `prepare` may change the network, as it is written, before it
    is traced.
    """
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchvision's warnings about its initial weights, which the method replaces
        torch.manual_seed(config.training.seed)
        network = network_by_name(config.network.name, images.num_classes, images.shape[0])
    prepare(network)
    graph = trace(network, Normalise(images.mean, images.deviation), images.shape, images.num_classes)
    generator = torch.Generator().manual_seed(config.training.seed ^ _INITIALISATION)
    rewritten = method_from_options(config.method).rewrite(graph, generator)
    insert_mixup(rewritten.graph, config.training.mixup)
    return rewritten


def grid_of(graph: GraphModule, config: Config, image_shape: tuple[int, int, int]) -> GridGraph:
    """Put a training graph onto the integer grid, in place, with the bits of the config.

    A part without an exact form is refused by name.
    """
    return grid_graph(graph, image_shape, GridBits(**config.exact.bits.model_dump()))
