"""torch.export programs as runners: the network's function, in float64 too, and cut."""

from pathlib import Path

import numpy as np
import pytest
import torch
from programs import TwoEnds, exported, exported_two_ends, small_net, write_program

from deploy.runners.pt2 import cut_at, from_exported, in_float64, load_program
from deploy.runners.runner import Array
from deploy.runners.torch import TorchRunner
from export.errors import DamagedError, UsageError

X = np.random.default_rng(0).normal(size=(3, 3, 8, 8)).astype(np.float32)


def test_a_program_runs_as_its_network(tmp_path: Path) -> None:
    program = load_program(write_program(tmp_path / "net.pt2", exported(small_net())))
    assert [(spec.name, spec.dtype, spec.shape[1:]) for spec in (*program.inputs, *program.outputs)] == [
        ("x", "float32", (3, 8, 8)),
        ("linear", "float32", (5,)),
    ]
    assert program.inputs[0].shape[0] == program.outputs[0].shape[0]
    assert "float32" in program.dtypes
    assert not {"float16", "bfloat16", "float64"} & program.dtypes
    found = TorchRunner(program.module, program.inputs, program.outputs).run({"x": X})["linear"]
    with torch.inference_mode():
        assert np.array_equal(found, small_net()(torch.tensor(X)).numpy())


def test_float64_is_the_network_in_double() -> None:
    wide = in_float64(from_exported(exported(small_net())))
    found = TorchRunner(wide.module, wide.inputs, wide.outputs, precision="float64").run({"x": X})["linear"]
    with torch.inference_mode():
        expected = small_net().double()(torch.tensor(X).double()).numpy()
    assert found.dtype == np.float64
    assert np.abs(found - expected).max() < 1e-14


def test_casts_constants_and_other_dtypes_in_float64() -> None:
    program = from_exported(exported_two_ends())
    assert [spec.dtype for spec in (*program.inputs, *program.outputs)] == ["int64", "float32", "float32", "int64", "bool"]
    wide = in_float64(program)
    batch: dict[str, Array] = {"tokens": np.arange(8).reshape(2, 4) % 8, "mask": np.ones((2, 4), np.float32)}
    found = TorchRunner(wide.module, program.inputs, wide.outputs, precision="float64").run(batch)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = TwoEnds().eval()
    table, weight, bias = (value.detach().double().numpy() for value in (net.table.weight, net.inner.weight, net.inner.bias))
    hidden = np.tanh(table[batch["tokens"]] @ weight.T + bias)
    assert np.abs(next(iter(found.values())) - hidden.sum(axis=1) * net.scale.double().numpy()).max() < 1e-14
    assert [value.dtype.name for value in found.values()] == ["float64", "int64", "bool"]


def test_up_to_an_inner_tensor() -> None:
    program = from_exported(exported(small_net()))
    points = {point.name: point for point in program.points}
    assert [(p.name, p.operation, p.inputs, p.layer) for p in program.points[:3]] == [
        ("conv2d", "conv2d", (), "conv"),
        ("batch_norm", "batch_norm", ("conv2d",), "norm"),
        ("relu", "relu", ("batch_norm",), ""),
    ]
    assert points["add"].inputs == ("conv2d_1", "relu")
    prefix = cut_at(program, "batch_norm")
    found = TorchRunner(prefix.module, prefix.inputs, prefix.outputs).run({"x": X})["batch_norm"]
    net = small_net()
    with torch.inference_mode():
        assert np.array_equal(found, net.norm(net.conv(torch.tensor(X))).numpy())
    with pytest.raises(UsageError, match="has no tensor 'nowhere'"):
        cut_at(program, "nowhere")


def test_an_input_that_a_prefix_does_not_need_is_still_taken() -> None:
    program = from_exported(exported_two_ends())
    prefix = cut_at(program, "embedding")
    batch: dict[str, Array] = {"tokens": np.zeros((2, 4), np.int64), "mask": np.ones((2, 4), np.float32)}
    assert TorchRunner(prefix.module, prefix.inputs, prefix.outputs).run(batch)["embedding"].shape == (2, 4, 4)


def test_sizes_that_it_was_not_exported_for_are_refused() -> None:
    free = {"x": {0: torch.export.Dim("batch", min=2, max=4)}}
    program = from_exported(torch.export.export(small_net(), (), {"x": torch.zeros(3, 3, 8, 8)}, dynamic_shapes=free))
    runner = TorchRunner(program.module, program.inputs, program.outputs)
    assert runner.run({"x": X[:2]})["linear"].shape == (2, 5)
    for number in (1, 5):
        with pytest.raises(UsageError, match=f"was exported for a s.* of 2 to 4, got {number}"):
            runner.run({"x": np.resize(X, (number, 3, 8, 8))})


def test_half_of_a_file_is_damaged(tmp_path: Path) -> None:
    whole = write_program(tmp_path / "net.pt2", exported(small_net())).read_bytes()
    (tmp_path / "half.pt2").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DamagedError, match=r"is not a torch\.export program"):
        load_program(tmp_path / "half.pt2")
