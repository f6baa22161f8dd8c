"""What is written comes back; what is damaged, foreign or of another config does not."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from export.errors import DamagedError, UsageError
from pipeline.config.methods import BatchnormOptions, CzmigOptions, MethodOptions
from pipeline.methods.method import RewrittenGraph
from pipeline.training.checkpoint import (
    checkpoint_bytes,
    first_difference,
    load_checkpoint,
    read_checkpoint,
    write_checkpoint,
)

Build = Callable[[MethodOptions], RewrittenGraph]
CONFIG = {"network": {"name": "small"}, "training": {"seed": 0, "milestones": (1, 2)}}


def _trained(build: Build) -> tuple[RewrittenGraph, torch.optim.SGD]:
    network = build(BatchnormOptions(name="batchnorm"))
    network.graph.to(memory_format=torch.channels_last)
    optimiser = torch.optim.SGD(network.graph.parameters(), lr=0.1, momentum=0.9)
    network.graph(torch.randint(0, 256, (4, 1, 8, 8), dtype=torch.uint8)).sum().backward()
    optimiser.step()
    return network, optimiser


@pytest.fixture
def path(tmp_path: Path, build: Build) -> Path:
    place = tmp_path / "checkpoints" / "last.safetensors"
    write_checkpoint(place, checkpoint_bytes(*_parts(build), {"epoch": 3}, CONFIG))
    return place


def _parts(build: Build) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    network, optimiser = _trained(build)
    return network.graph, optimiser


def test_everything_comes_back(tmp_path: Path, build: Build) -> None:
    network, optimiser = _trained(build)
    path = tmp_path / "last.safetensors"
    write_checkpoint(path, checkpoint_bytes(network.graph, optimiser, {"epoch": 3, "loss": 0.1}, CONFIG))
    other = build(BatchnormOptions(name="batchnorm"))
    other.graph.to(memory_format=torch.channels_last)
    resumed = torch.optim.SGD(other.graph.parameters(), lr=0.1, momentum=0.9)
    checkpoint = load_checkpoint(path, CONFIG)
    checkpoint.restore_graph(other.graph)
    checkpoint.restore_momentum(other.graph, resumed)
    assert checkpoint.position == {"epoch": 3, "loss": 0.1}
    for (name, one), (_, two) in zip(network.graph.state_dict().items(), other.graph.state_dict().items(), strict=True):
        assert torch.equal(one, two), name
        assert one.stride() == two.stride(), name
    for one, two in zip(network.graph.parameters(), other.graph.parameters(), strict=True):
        was, now = optimiser.state[one]["momentum_buffer"], resumed.state[two]["momentum_buffer"]
        assert torch.equal(was, now)
        assert was.stride() == now.stride()


def test_any_changed_byte_is_found(path: Path) -> None:
    content = bytearray(path.read_bytes())
    places = [0, 9, 40, 200, len(content) // 2, len(content) - 1]
    header_end = 8 + int.from_bytes(content[:8], "little")
    places += [content.index(b'\\"epoch\\": 3') + 11, header_end, header_end - 40]
    for place in places:
        changed = bytearray(content)
        changed[place] ^= 1
        path.write_bytes(changed)
        with pytest.raises(DamagedError, match=str(path)):
            read_checkpoint(path)


@pytest.mark.parametrize("length", [0, 4, 100, -1])
def test_a_file_that_was_cut_is_damaged(path: Path, length: int) -> None:
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(DamagedError, match="is damaged"):
        read_checkpoint(path)


def test_a_file_that_is_not_there_is_a_mistake_of_the_user(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no checkpoint"):
        read_checkpoint(tmp_path / "none.safetensors")


def test_another_config_is_refused_by_its_first_difference(path: Path) -> None:
    changed = {"network": {"name": "small"}, "training": {"seed": 1, "milestones": (1, 3)}}
    with pytest.raises(UsageError, match=r"training\.seed = 0, the config says 1; .* --fresh"):
        load_checkpoint(path, changed)


def test_another_network_is_refused_by_name(path: Path, build: Build) -> None:
    other = build(CzmigOptions(name="czmig"))
    with pytest.raises(DamagedError, match=r"does not fit .* (it|the network) lacks"):
        read_checkpoint(path).restore_graph(other.graph)


def test_another_shape_is_refused_by_name(path: Path, build: Build) -> None:
    graph = build(BatchnormOptions(name="batchnorm")).graph
    name, parameter = next(iter(graph.named_parameters()))
    graph.get_submodule(name.rpartition(".")[0]).register_parameter("weight", torch.nn.Parameter(parameter[:1]))
    with pytest.raises(DamagedError, match=name):
        read_checkpoint(path).restore_graph(graph)


def test_the_old_checkpoint_stays_until_the_new_one_is_complete(path: Path, build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    before = path.read_bytes()

    def no_space(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(OSError, match="No space"):
        write_checkpoint(path, checkpoint_bytes(*_parts(build), {"epoch": 4}, CONFIG))
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize(
    ("stored", "given", "expected"),
    [
        ({"a": {"b": 1}}, {"a": {"b": 1}}, None),
        ({"a": {"b": 1}}, {"a": {"b": 2}}, ("a.b", "1", "2")),
        ({"a": 1}, {"a": 1, "b": None}, ("b", "nothing", "null")),
        ({"a": 1, "b": 2}, {"a": 1}, ("b", "2", "nothing")),
        ({"a": {"b": 1}}, {"a": "x"}, ("a", '{"b": 1}', '"x"')),
        ({"a": 1}, {"a": 1.5, "b": 3}, ("a", "1", "1.5")),
    ],
)
def test_the_first_difference(stored: dict[str, object], given: dict[str, object], expected: tuple[str, str, str] | None) -> None:
    assert first_difference(stored, given) == expected
