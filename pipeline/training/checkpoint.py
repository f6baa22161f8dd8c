"""Checkpoints: one safetensors file with tensors, JSON in its header, and a hash over both.

Contains no pickle. The file is replaced in one move, so there is either the old checkpoint or the
new one. Knows no loop.
"""

import hashlib
import json
import platform
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import nn

from export.errors import DamagedError, UsageError
from export.files import write_file

FORMAT = 1
_WEIGHTS, _MOMENTUM, _AVERAGE = "graph/", "momentum/", "average/"

Config = Mapping[str, Any]
Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Checkpoint:
    """Everything that a run needs to go on as if it had never stopped.

    `position` belongs to the loop and is plain JSON.
    """

    path: Path
    weights: Tensors
    momentum: Tensors
    average: Tensors
    """The running average of the weights; empty if none is kept."""
    position: dict[str, Any]
    config: Config

    def restore_graph(self, graph: nn.Module) -> None:
        """Copy the weights and statistics into a graph of the same network and method."""
        self._copy(self.weights, _state(graph))

    def restore_average(self, graph: nn.Module) -> None:
        """Copy the running average of the weights into a graph of the same network and method."""
        self._copy(self.average, _state(graph))

    def restore_deployed(self, graph: nn.Module) -> None:
        """Copy what is evaluated and deployed: the average if one is kept, or else the weights."""
        self._copy(self.average or self.weights, _state(graph))

    def restore_momentum(self, graph: nn.Module, optimiser: torch.optim.Optimizer) -> None:
        """Give the optimiser the momentum it had, in the memory layout of its parameters."""
        parameters = dict(graph.named_parameters())
        for name, value in self.momentum.items():
            if name not in parameters:
                raise self._unfit(f"momentum of {name}, which the network does not have")
            buffer = torch.empty_like(parameters[name])
            self._copy({name: value}, {name: buffer})
            optimiser.state[parameters[name]]["momentum_buffer"] = buffer

    @torch.no_grad()
    def _copy(self, stored: Tensors, into: Tensors) -> None:
        if unmatched := sorted(stored.keys() ^ into.keys()):
            whose = "it lacks" if unmatched[0] in into else "the network lacks"
            raise self._unfit(f"{whose} {unmatched[0]}")
        for name, value in into.items():
            if (value.shape, value.dtype) != (stored[name].shape, stored[name].dtype):
                raise self._unfit(f"{name} is {_spoken(stored[name])}, the network has {_spoken(value)}")
            value.copy_(stored[name])

    def _unfit(self, how: str) -> DamagedError:
        return DamagedError(f"checkpoint {self.path} does not fit the network of its own config: {how}; start over with --fresh")


def checkpoint_bytes(
    graph: nn.Module, optimiser: torch.optim.Optimizer, position: Mapping[str, object], config: Config, average: nn.Module | None = None
) -> bytes:
    """Return the content of the file.

    `average` holds the running average of the weights, if one is kept.
    """
    momentum = {
        name: state["momentum_buffer"]
        for name, parameter in graph.named_parameters()
        if (state := optimiser.state.get(parameter)) and state.get("momentum_buffer") is not None
    }
    tensors = _on_cpu(_WEIGHTS, _state(graph)) | _on_cpu(_MOMENTUM, momentum)
    if average is not None:
        tensors |= _on_cpu(_AVERAGE, _state(average))
    text = json.dumps({"format": FORMAT, "position": position, "config": config, "versions": _versions()}, allow_nan=False)
    return safetensors.torch.save(tensors, {"run": text, "sha256": _digest(text, tensors)})


def write_checkpoint(path: Path, content: bytes) -> None:
    """Replace the checkpoint at `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, content)


def load_checkpoint(path: Path, config: Config) -> Checkpoint:
    """Read and check a checkpoint that must have been made with this config."""
    checkpoint = read_checkpoint(path)
    if difference := first_difference(checkpoint.config, _as_json(config)):
        key, stored, given = difference
        raise UsageError(
            f"checkpoint {path} was made with {key} = {stored}, the config says {given}; set it back to continue, or start over with --fresh"
        )
    return checkpoint


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint of any config; refuse it if a single byte differs from what was written."""
    try:
        run, tensors = _checked(path)
    except FileNotFoundError as error:
        raise UsageError(f"there is no checkpoint {path}; start over with --fresh") from error
    except (safetensors.SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedError(f"checkpoint {path} is damaged: {str(error).splitlines()[0]}; restore the file, or start over with --fresh") from error
    if run["format"] != FORMAT:
        raise DamagedError(f"checkpoint {path} has format {run['format']}, this version reads {FORMAT}; start over with --fresh")
    weights, momentum, average = (_part(tensors, prefix) for prefix in (_WEIGHTS, _MOMENTUM, _AVERAGE))
    return Checkpoint(path, weights, momentum, average, run["position"], run["config"])


def first_difference(stored: Config, given: Config, prefix: str = "") -> tuple[str, str, str] | None:
    """Return the path of the first key whose value differs, and both values as text.

    The order is that of the given config.
    """
    for key in dict.fromkeys([*given, *stored]):
        one, other = stored.get(key), given.get(key)
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            if found := first_difference(one, other, f"{prefix}{key}."):
                return found
        elif one != other or (key in stored) != (key in given):
            return f"{prefix}{key}", _value(stored, key), _value(given, key)
    return None


def _value(config: Config, key: str) -> str:
    return json.dumps(config[key]) if key in config else "nothing"


def _as_json(config: Config) -> Config:
    as_json: dict[str, Any] = json.loads(json.dumps(config))
    return as_json


def _checked(path: Path) -> tuple[dict[str, Any], Tensors]:
    content = path.read_bytes()
    tensors = safetensors.torch.load(content)
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])["__metadata__"]
    if header["sha256"] != _digest(header["run"], tensors):
        raise ValueError("its content does not have the hash that was written with it")
    return json.loads(header["run"]), tensors


def _digest(text: str, tensors: Tensors) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        value = tensors[name]
        digest.update(f"\n{name} {_spoken(value)}\n".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _spoken(value: torch.Tensor) -> str:
    return f"{value.dtype} {tuple(value.shape)}"


def _state(graph: nn.Module) -> Tensors:
    """Return parameters and buffers, each under one name even if modules share it."""
    named: Iterable[tuple[str, torch.Tensor]] = (*graph.named_parameters(), *graph.named_buffers())
    return {name: value.detach() for name, value in named}


def _on_cpu(prefix: str, tensors: Tensors) -> Tensors:
    return {prefix + name: value.detach().cpu().contiguous() for name, value in tensors.items()}


def _part(tensors: Tensors, prefix: str) -> Tensors:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _versions() -> dict[str, str]:
    return {"python": platform.python_version(), "torch": torch.__version__, "safetensors": safetensors.__version__}
