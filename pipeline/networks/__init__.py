"""Networks by name: ours, torchvision's, or a function of the user.

Each is written the ordinary way, with BatchNorm. A new network is one file here and one row in
`NETWORKS`, or in `FAMILIES` if its name holds numbers; nothing else knows its name.
"""

import copy
import difflib
import importlib
import inspect
import sys
import sysconfig
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import nn

from export.errors import UsageError
from pipeline.networks.cifar_resnet import CifarResNet
from pipeline.networks.families import Builder, Family
from pipeline.networks.mobilenet_v2 import MobileNetV2
from pipeline.networks.preact_resnet import PreActBlock, PreActBottleneck, PreActResNet
from pipeline.networks.resnet import BasicBlock, Bottleneck, ResNet
from pipeline.networks.shufflenet_v2 import ShuffleNetV2
from pipeline.networks.squeezenet import SqueezeNet
from pipeline.networks.vgg import VGG11, VGG16, Vgg
from pipeline.networks.wide_resnet import WideResNet, by_depth_and_width

NETWORKS: dict[str, Builder] = {
    "small": partial(CifarResNet, 1),
    "resnet20": partial(CifarResNet, 3),
    "resnet32": partial(CifarResNet, 5),
    "resnet44": partial(CifarResNet, 7),
    "resnet56": partial(CifarResNet, 9),
    "resnet110": partial(CifarResNet, 18),
    "resnet18": partial(ResNet, BasicBlock, (2, 2, 2, 2)),
    "resnet34": partial(ResNet, BasicBlock, (3, 4, 6, 3)),
    "resnet50": partial(ResNet, Bottleneck, (3, 4, 6, 3)),
    "resnet101": partial(ResNet, Bottleneck, (3, 4, 23, 3)),
    "preactresnet18": partial(PreActResNet, PreActBlock, (2, 2, 2, 2)),
    "preactresnet34": partial(PreActResNet, PreActBlock, (3, 4, 6, 3)),
    "preactresnet50": partial(PreActResNet, PreActBottleneck, (3, 4, 6, 3)),
    "preactresnet101": partial(PreActResNet, PreActBottleneck, (3, 4, 23, 3)),
    "preactresnet152": partial(PreActResNet, PreActBottleneck, (3, 8, 36, 3)),
    "wrn20": partial(WideResNet, 3, 96, 96),
    "vgg11": partial(Vgg, VGG11),
    "vgg16": partial(Vgg, VGG16),
    "squeezenet": SqueezeNet,
    "shufflenetv2_x0_5": partial(ShuffleNetV2, (48, 96, 192, 1024)),
    "shufflenetv2_x1_0": partial(ShuffleNetV2, (116, 232, 464, 1024)),
    "mobilenetv2": MobileNetV2,
}
"""Networks for small images; torchvision has others. resnet20 to resnet110 begin with 16 planes,
the other ResNets with 64. wrn20 has 20 layers, 96 planes in the stem, and 96, 192 and 384 planes in
its stages."""

FAMILIES = (Family("wrn-DEPTH-WIDTH", by_depth_and_width, ("wrn-16-8", "wrn-28-10", "wrn-40-4")),)


def network_by_name(name: str, num_classes: int, in_channels: int) -> nn.Module:
    """Build a network with the weights of its own initialisation."""
    prefix, separator, rest = name.partition(":")
    if not separator:
        return _ours(name)(num_classes, in_channels)
    if prefix == "torchvision":
        return _torchvision(rest, num_classes, in_channels)
    return _of_the_user(prefix, rest, num_classes, in_channels)


def is_of_the_user(name: str) -> bool:
    """Return whether the name refers to the user's own code, which no bundle may import."""
    return ":" in name and not name.startswith("torchvision:")


def _ours(name: str) -> Builder:
    if name in NETWORKS:
        return NETWORKS[name]
    for family in FAMILIES:
        try:
            builder = family.builder_of(name)
        except ValueError as error:
            raise UsageError(f"network.name: {name}: {error}") from error
        if builder is not None:
            return builder
    known = ", ".join([*NETWORKS, *(family.form for family in FAMILIES)])
    raise UsageError(f"network.name: unknown network {name!r}; {_nearest(name)}known are {known}, torchvision:NAME, module:function")


def _nearest(name: str) -> str:
    candidates = [*NETWORKS, *(near for family in FAMILIES for near in family.near(name))]
    near = difflib.get_close_matches(name.lower(), candidates, n=1)
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
    """Give the first convolution new weights for another number of channels.

    torchvision's networks take three channels.
    """
    name, first = next((name, layer) for name, layer in network.named_modules() if isinstance(layer, nn.Conv2d))
    replacement = copy.copy(first)
    replacement.in_channels = in_channels
    replacement.weight = nn.Parameter(torch.empty(first.out_channels, in_channels, *first.kernel_size))
    replacement.reset_parameters()
    network.set_submodule(name, replacement)
    return network


def _of_the_user(module: str, function: str, num_classes: int, in_channels: int) -> nn.Module:
    build = _imported(module, function)
    _require_arguments(build, f"{module}:{function}")
    try:
        network = build(num_classes=num_classes, in_channels=in_channels)
    except UsageError:
        raise
    except (Exception, SystemExit) as error:
        raise UsageError(f"network.name: {module}:{function} {_raised(error)}; fix it there") from error
    if not isinstance(network, nn.Module):
        raise UsageError(f"network.name: {module}:{function} returned {type(network).__name__}, expected a torch.nn.Module")
    return network


def _imported(module: str, function: str) -> Callable[..., object]:
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)
    try:
        found: object = getattr(importlib.import_module(module), function)
    except (Exception, SystemExit) as error:
        raise UsageError(
            f"network.name: cannot import {function!r} from {module!r}: it {_raised(error)}; it is looked up in the current folder first"
        ) from error
    if not callable(found):
        raise UsageError(f"network.name: {module}:{function} is a {type(found).__name__}, expected a function that returns a network")
    return found


def _require_arguments(build: Callable[..., object], name: str) -> None:
    try:
        signature = inspect.signature(build)
    except (TypeError, ValueError):  # some functions written in C do not give their arguments
        return
    try:
        signature.bind(num_classes=0, in_channels=0)
    except TypeError as error:
        raise UsageError(
            f"network.name: {name} is called with (num_classes=..., in_channels=...) and takes {signature}: {error}; rename its arguments"
        ) from error


def _raised(error: BaseException) -> str:
    """Describe on one line what the user's code raised, and on which line of that code."""
    message = error.msg if isinstance(error, SyntaxError) else " ".join(str(error).split())
    place = _place_of(error)
    return f"raised {type(error).__name__}" + (f": {message}" if message else "") + (f" at {place}" if place else "")


def _place_of(error: BaseException) -> str | None:
    if isinstance(error, SyntaxError):
        return None if error.filename is None else f"{error.filename}:{error.lineno}"
    lines = [f"{frame.filename}:{frame.lineno}" for frame in traceback.extract_tb(error.__traceback__) if _is_code_of_the_user(frame.filename)]
    return lines[-1] if lines else None


def _is_code_of_the_user(file: str) -> bool:
    """Return whether the file is neither this one, nor Python's own, nor part of an installed
    package."""
    installed = (sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib"))
    return file != __file__ and not file.startswith("<") and not any(Path(file).is_relative_to(folder) for folder in installed)
