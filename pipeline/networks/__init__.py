"""Networks by name: ours, torchvision's, or the user's own function. Each is written the ordinary way, with BatchNorm.

A new network is one file here and one row in `NETWORKS`; nothing else knows its name.
"""

import copy
import difflib
import importlib
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from export.errors import UsageError
from pipeline.networks.cifar_resnet import CifarResNet

Builder = Callable[[int, int], nn.Module]
"""From the numbers of classes and of input channels to a network."""


def _cifar_resnet(blocks_per_stage: int) -> Builder:
    return lambda num_classes, in_channels: CifarResNet(blocks_per_stage, num_classes, in_channels)


NETWORKS: dict[str, Builder] = {
    "small": _cifar_resnet(1),
    "resnet20": _cifar_resnet(3),
    "resnet32": _cifar_resnet(5),
    "resnet44": _cifar_resnet(7),
    "resnet56": _cifar_resnet(9),
    "resnet110": _cifar_resnet(18),
}


def network_by_name(name: str, num_classes: int, in_channels: int) -> nn.Module:
    """Build a network; its weights are those of its own initialisation."""
    if name in NETWORKS:
        return NETWORKS[name](num_classes, in_channels)
    prefix, separator, rest = name.partition(":")
    if not separator:
        raise UsageError(
            f"network.name: unknown network {name!r}; {_nearest(name)}known are {', '.join(NETWORKS)}, torchvision:NAME, module:function"
        )
    if prefix == "torchvision":
        return _torchvision(rest, num_classes, in_channels)
    return _of_the_user(prefix, rest, num_classes, in_channels)


def is_of_the_user(name: str) -> bool:
    """Whether the name stands for code of the user's own, which no bundle may import."""
    return ":" in name and not name.startswith("torchvision:")


def _nearest(name: str) -> str:
    near = difflib.get_close_matches(name, NETWORKS, n=1)
    return f"did you mean {near[0]!r}? " if near else ""


def _torchvision(name: str, num_classes: int, in_channels: int) -> nn.Module:
    from torchvision import models

    if name not in models.list_models(module=models):
        near = difflib.get_close_matches(name, models.list_models(module=models), n=1)
        nearest = f"nearest is {near[0]!r}" if near else "see torchvision.models.list_models()"
        raise UsageError(f"network.name: torchvision has no classification network {name!r}; {nearest}")
    network: nn.Module = models.get_model(name, weights=None, num_classes=num_classes)
    return network if in_channels == 3 else _with_input_channels(network, in_channels)


def _with_input_channels(network: nn.Module, in_channels: int) -> nn.Module:
    """torchvision's networks take three channels; the first convolution gets weights for another number."""
    name, first = next((name, layer) for name, layer in network.named_modules() if isinstance(layer, nn.Conv2d))
    anew = copy.copy(first)
    anew.in_channels = in_channels
    anew.weight = nn.Parameter(torch.empty(first.out_channels, in_channels, *first.kernel_size))
    anew.reset_parameters()
    network.set_submodule(name, anew)
    return network


def _of_the_user(module: str, function: str, num_classes: int, in_channels: int) -> nn.Module:
    build = _imported(module, function)
    network = build(num_classes=num_classes, in_channels=in_channels)
    if not isinstance(network, nn.Module):
        raise UsageError(f"network.name: {module}:{function} returned {type(network).__name__}, expected a torch.nn.Module")
    return network


def _imported(module: str, function: str) -> Callable[..., object]:
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)
    try:
        found: object = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise UsageError(f"network.name: cannot import {function!r} from {module!r}: {error}; it is looked up in the current folder first") from error
    if not callable(found):
        raise UsageError(f"network.name: {module}:{function} is a {type(found).__name__}, expected a function that returns a network")
    return found
