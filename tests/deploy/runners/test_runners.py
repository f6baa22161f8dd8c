"""Runners: what is refused before and after the runtime, and that each runs what it says."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx_files import IMAGE, LOGITS, Perceptron, pixels, random_weights, write_onnx
from torch import nn

from deploy.runners.onnxruntime import OnnxRuntimeRunner
from deploy.runners.runner import Array, Runner, TensorSpec
from deploy.runners.runtimes import FILE_RUNTIMES, RUNTIMES, RunOptions, open_file, other_runs
from deploy.runners.torch import TorchRunner
from export.errors import DamagedError, NotHereError, UsageError


class _Part:
    """The nodes of a session that one provider got."""

    def __init__(self, provider: str, operation: str) -> None:
        self.ep_name, self.op_type = provider, operation

    def get_nodes(self) -> list["_Part"]:
        return [self]


class SampleSource(Runner):
    """Returns what it was given to return, and remembers that it was called."""

    def __init__(self, outputs: dict[str, Array]) -> None:
        self.name, self.inputs, self.outputs = "given", (IMAGE,), (LOGITS,)
        self.num_runs, self.closed = 0, False
        self._given = outputs

    @property
    def facts(self) -> Mapping[str, object]:
        return {}

    def _run(self, batch: Mapping[str, Array]) -> dict[str, Array]:
        self.num_runs += 1
        return self._given

    def close(self) -> None:
        self.closed = True


GOOD = np.zeros((2, 5), np.float32)
IMAGES = pixels(2)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({}, r"given: got inputs \[\], expected \['image'\]; names must match exactly"),
        ({"picture": IMAGES}, r"got inputs \['picture'\]"),
        ({"image": IMAGES, "more": IMAGES}, r"got inputs \['image', 'more'\]"),
        (
            {"image": IMAGES.astype(np.float32)},
            "image is float32, 2 x 1 x 4 x 4; expected image .uint8, N x 1 x 4 x 4.",
        ),
        ({"image": IMAGES[0]}, "image is uint8, 1 x 4 x 4; expected"),
        ({"image": IMAGES[:, :, :3]}, "image is uint8, 2 x 1 x 3 x 4; expected"),
        ({"image": IMAGES[:0]}, "got 0 as the number of samples, expected at least 1"),
        ({"image": IMAGES.tolist()}, "image is a list, expected a NumPy array"),
    ],
)
def test_input_is_refused_before_the_runtime_sees_it(batch: dict[str, Array], message: str) -> None:
    with SampleSource({"logits": GOOD}) as runner:
        with pytest.raises(UsageError, match=message) as caught:
            runner.run(batch)
        assert runner.num_runs == 0
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("outputs", [{}, {"scores": GOOD}, {"logits": GOOD[:, :4]}, {"logits": GOOD.astype(np.float64)}])
def test_output_that_is_not_as_declared_is_refused(outputs: dict[str, Array]) -> None:
    with pytest.raises(DamagedError, match=r"given: (got outputs|output logits)"):
        SampleSource(outputs).run({"image": IMAGES})


def test_output_as_declared_is_handed_on_and_the_end_closes() -> None:
    with SampleSource({"logits": GOOD}) as runner:
        assert runner.run({"image": IMAGES})["logits"] is GOOD
    assert runner.closed


def test_inputs_must_agree_on_the_batch() -> None:
    runner = SampleSource({"logits": GOOD})
    runner.inputs = (IMAGE, TensorSpec("weight", "float32", (None,)))
    with pytest.raises(UsageError, match="differ in their number of samples"):
        runner.run({"image": IMAGES, "weight": np.ones(3, np.float32)})


def test_free_sizes_of_one_name_must_agree() -> None:
    runner = SampleSource({"logits": GOOD})
    runner.inputs = (TensorSpec("tokens", "float32", ("batch", "length")), TensorSpec("mask", "float32", ("length",)))
    runner.run({"tokens": np.ones((2, 3), np.float32), "mask": np.ones(3, np.float32)})
    with pytest.raises(UsageError, match=r"inputs differ in their size 'length', \{'tokens\[1\]': 3, 'mask\[0\]': 2\}; give all the same"):
        runner.run({"tokens": np.ones((2, 3), np.float32), "mask": np.ones(2, np.float32)})
    with pytest.raises(UsageError, match="got 0 as the size 'length', expected at least 1"):
        runner.run({"tokens": np.ones((2, 0), np.float32), "mask": np.ones(0, np.float32)})


class TestTorch:
    def test_runs_the_module_in_float32(self) -> None:
        module = Perceptron(random_weights()).eval()
        with TorchRunner(module, [IMAGE], [LOGITS]) as runner:
            found = runner.run({"image": IMAGES})["logits"]
        with torch.no_grad():
            assert np.array_equal(found, module(torch.tensor(IMAGES)).numpy())

    def test_mode_and_gradients_are_those_it_was_given(self) -> None:
        class Mode(nn.Module):
            def forward(self, image: torch.Tensor) -> torch.Tensor:
                facts = [self.training, torch.is_grad_enabled(), torch.is_inference_mode_enabled(), 0, 0]
                return torch.tensor([[float(fact) for fact in facts]])

        image = {"image": IMAGES[:1]}
        for gradients in (False, True):
            for module in (Mode().train(), Mode().eval()):
                runner = TorchRunner(module, [IMAGE], [LOGITS], gradients=gradients)
                expected = [module.training, gradients, not gradients, 0, 0]
                assert runner.run(image)["logits"].tolist() == [[float(x) for x in expected]]
                assert runner.facts["training_mode"] == module.training

    def test_float64_is_a_copy(self) -> None:
        module = Perceptron(random_weights())
        with TorchRunner(module, [IMAGE], [LOGITS], precision="float64") as runner:
            found = runner.run({"image": IMAGES})["logits"]
        assert found.dtype == np.float64
        assert module.first.weight.dtype == torch.float32
        weights = random_weights()
        flat = (IMAGES.reshape(2, -1).astype(np.float64) - 128) / 64
        hidden = np.maximum(flat @ weights.first.astype(np.float64).T + weights.bias, 0)
        assert np.allclose(found, hidden @ weights.last.astype(np.float64).T + weights.last_bias, rtol=1e-13)

    def test_strided_and_read_only_input(self) -> None:
        runner = TorchRunner(Perceptron(random_weights()), [IMAGE], [LOGITS])
        straight = IMAGES[::-1].copy()
        straight.flags.writeable = False
        strided = runner.run({"image": IMAGES[::-1]})["logits"]
        assert np.array_equal(strided, runner.run({"image": straight})["logits"])

    def test_outputs_do_not_change_with_the_next_run(self) -> None:
        class Reuses(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.kept = torch.zeros(2, 5)

            def forward(self, image: torch.Tensor) -> torch.Tensor:
                return self.kept.add_(1)

        runner = TorchRunner(Reuses(), [IMAGE], [LOGITS], gradients=True)
        first = runner.run({"image": IMAGES})["logits"]
        runner.run({"image": IMAGES})
        assert first.max() == 1

    def test_process_wide_settings_are_overruled_and_put_back(self) -> None:
        backends = torch.backends
        seen: dict[str, object] = {}

        class Looks(nn.Module):
            def forward(self, image: torch.Tensor) -> torch.Tensor:
                seen["conv"] = backends.cudnn.conv.fp32_precision  # type: ignore[attr-defined]
                seen["matmul"] = backends.cuda.matmul.fp32_precision
                seen["benchmark"] = backends.cudnn.benchmark
                seen["autocast"] = torch.is_autocast_enabled("cpu")
                return torch.zeros(2, 5)

        before = backends.cudnn.allow_tf32, backends.cudnn.benchmark
        backends.cudnn.benchmark = True
        try:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                TorchRunner(Looks(), [IMAGE], [LOGITS]).run({"image": IMAGES})
            assert seen == {"conv": "ieee", "matmul": "ieee", "benchmark": False, "autocast": False}
            assert (backends.cudnn.allow_tf32, backends.cudnn.benchmark) == (before[0], True)
        finally:
            backends.cudnn.benchmark = before[1]

    @pytest.mark.parametrize("plain_sums", [False, True])
    def test_plain_sums_do_without_cudnn_and_its_transformed_convolutions(self, plain_sums: bool) -> None:
        seen: list[bool] = []

        class Looks(nn.Module):
            def forward(self, image: torch.Tensor) -> torch.Tensor:
                seen.append(torch.backends.cudnn.enabled)
                return torch.zeros(2, 5)

        runner = TorchRunner(Looks(), [IMAGE], [LOGITS], plain_sums=plain_sums)
        runner.run({"image": IMAGES})
        assert seen == [not plain_sums]
        flags: Any = runner.facts["flags"]
        assert flags["cudnn"] is not plain_sums
        assert torch.backends.cudnn.enabled

    def test_several_outputs_are_named_in_order(self) -> None:
        class Two(nn.Module):
            def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
                return torch.zeros(2, 5), torch.ones(2, dtype=torch.int64)

        runner = TorchRunner(Two(), [IMAGE], [LOGITS, TensorSpec("label", "int64", (None,))])
        assert runner.run({"image": IMAGES})["label"].tolist() == [1, 1]

    def test_threads_are_those_it_was_given_and_put_back(self) -> None:
        seen = []

        class Counts(nn.Module):
            def forward(self, image: torch.Tensor) -> torch.Tensor:
                seen.append(torch.get_num_threads())
                return torch.zeros(2, 5)

        before = torch.get_num_threads()
        for threads in (0, 1, 3):
            runner = TorchRunner(Counts(), [IMAGE], [LOGITS], threads=threads)
            runner.run({"image": IMAGES})
            assert runner.facts["threads"] == seen[-1]
        assert (seen, torch.get_num_threads()) == ([before, 1, 3], before)

    def test_channels_last_holds_for_images_and_filters_of_a_copy(self) -> None:
        seen = []

        class Looks(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.filters = nn.Conv2d(2, 2, 3)

            def forward(self, image: torch.Tensor) -> torch.Tensor:
                seen.append([x.is_contiguous(memory_format=torch.channels_last) for x in (image, self.filters.weight)])
                return torch.zeros(2, 5)

        module, spec = Looks(), TensorSpec("image", "uint8", (None, 2, 4, 4))
        images = {"image": np.repeat(IMAGES, 2, axis=1)}
        for channels_last in (False, True, False):
            runner = TorchRunner(module, [spec], [LOGITS], channels_last=channels_last)
            runner.run(images)
            assert runner.facts["memory_format"] == ("channels_last" if channels_last else "contiguous_format")
        assert seen == [[False, False], [True, True], [False, False]]

    @pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
    def test_missing_device(self) -> None:
        with pytest.raises(NotHereError, match=r"'cuda' was requested.*use 'cpu'"):
            TorchRunner(nn.Identity(), [IMAGE], [LOGITS], device="cuda")


class TestOnnxRuntime:
    @pytest.mark.parametrize("optimisation", ["none", "basic", "extended", "all"])
    def test_runs_the_file(self, tmp_path: Path, optimisation: str) -> None:
        path = write_onnx(tmp_path / "model.onnx", random_weights())
        options = RunOptions(optimisation=optimisation, threads=1)  # type: ignore[arg-type]
        with open_file("onnxruntime-cpu", path, options) as runner:
            found = runner.run({"image": IMAGES})["logits"]
            assert runner.inputs == (replace(IMAGE, shape=("N", *IMAGE.shape[1:])),)
            assert runner.outputs == (replace(LOGITS, shape=("N", *LOGITS.shape[1:])),)
            facts = runner.facts
        expected = TorchRunner(Perceptron(random_weights()), [IMAGE], [LOGITS]).run({"image": IMAGES})["logits"]
        assert np.allclose(found, expected, rtol=1e-5, atol=1e-5)
        assert (facts["providers"], facts["threads"], facts["device"]) == (["CPUExecutionProvider"], 1, "cpu")
        assert facts["nodes"] == {"CPUExecutionProvider": {"Cast": 1, "Div": 1, "Flatten": 1, "Gemm": 2, "Relu": 1, "Sub": 1}}

    def test_a_session_that_fell_back_is_refused_by_its_operations(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Like a CUDA session that computes shapes on the CPU, which it may, and then products."""

        def placed(*nodes: tuple[str, str]) -> None:
            monkeypatch.setattr(ort.InferenceSession, "get_provider_graph_assignment_info", lambda _: [_Part(*node) for node in nodes])

        path = write_onnx(tmp_path / "model.onnx", random_weights())
        placed(("CPUExecutionProvider", "Gemm"), ("OtherProvider", "Shape"))
        assert OnnxRuntimeRunner(path).facts["nodes"] == {"CPUExecutionProvider": {"Gemm": 1}, "OtherProvider": {"Shape": 1}}
        placed(("CPUExecutionProvider", "Gemm"), ("OtherProvider", "Shape"), ("OtherProvider", "Relu"))
        with pytest.raises(NotHereError, match="but Relu would run on OtherProvider"):
            OnnxRuntimeRunner(path)

    def test_strided_input(self, tmp_path: Path) -> None:
        with OnnxRuntimeRunner(write_onnx(tmp_path / "model.onnx", random_weights())) as runner:
            turned = runner.run({"image": IMAGES[::-1]})["logits"]
            assert np.array_equal(turned, runner.run({"image": IMAGES[::-1].copy()})["logits"])

    @pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
    @pytest.mark.parametrize("runtime", ["onnxruntime-cuda", "onnxruntime-tensorrt"])
    def test_listed_but_not_loadable_provider_is_refused(self, runtime: str, tmp_path: Path) -> None:
        path = write_onnx(tmp_path / "model.onnx", random_weights())
        with pytest.raises(NotHereError, match=rf"{runtime} \(all\) was requested, but (.* has only CPUExecutionProvider|the libraries of TensorRT)"):
            open_file(runtime, path)

    def test_not_installed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "onnxruntime", None)
        with pytest.raises(NotHereError, match="pip install onnxruntime-gpu"):
            open_file("onnxruntime-cpu", tmp_path / "model.onnx")

    @pytest.mark.parametrize("content", [b"", b"hello", b"\x08\x0a"])
    def test_a_file_that_is_no_model(self, tmp_path: Path, content: bytes) -> None:
        path = tmp_path / "model.onnx"
        path.write_bytes(content)
        with pytest.raises(DamagedError, match="is not an ONNX") as caught:
            open_file("onnxruntime-cpu", path)
        assert "\n" not in str(caught.value)

    def test_a_file_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="is not a file"):
            open_file("onnxruntime-cpu", tmp_path / "none.onnx")


def test_other_runs_differ_in_one_choice_that_the_runtime_has() -> None:
    found = [
        (each.choice, each.setting, each.options)
        for each in other_runs(RUNTIMES["onnxruntime-cpu"].choices, RunOptions(optimisation="none", threads=1))
    ]
    assert found == [
        ("threads", "3 threads", RunOptions(optimisation="none", threads=3)),
        *(("optimisation", f"optimisation: {level}", RunOptions(optimisation=level, threads=1)) for level in ("basic", "extended", "all")),
    ]
    assert {each.choice for each in other_runs(RUNTIMES["onnxruntime-cuda"].choices, RunOptions())} == {"optimisation"}


def test_unknown_runtime(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"choose one of {', '.join(FILE_RUNTIMES)}"):
        open_file("onnxruntime", tmp_path / "model.onnx")


def test_the_table_imports_no_runtime() -> None:
    code = "import sys, deploy.runners.runtimes; sys.exit(bool({'torch', 'onnxruntime', 'openvino', 'onnx'} & set(sys.modules)))"
    root = Path(__file__).parents[3]
    subprocess.run([sys.executable, "-c", code], cwd=root, env=dict(os.environ), check=True)


class TestOpenVino:
    """Without OpenVINO nothing here runs, and pytest says so."""

    @pytest.fixture(autouse=True)
    def installed(self) -> None:
        pytest.importorskip("openvino", reason="not run: openvino is not installed")

    @pytest.mark.parametrize("threads", [0, 1])
    def test_runs_the_file(self, tmp_path: Path, threads: int) -> None:
        path = write_onnx(tmp_path / "model.onnx", random_weights())
        with open_file("openvino-cpu", path, RunOptions(threads=threads)) as runner:
            found = runner.run({"image": IMAGES})["logits"]
            assert [(spec.name, spec.dtype) for spec in (*runner.inputs, *runner.outputs)] == [("image", "uint8"), ("logits", "float32")]
            facts = runner.facts
        expected = TorchRunner(Perceptron(random_weights()), [IMAGE], [LOGITS]).run({"image": IMAGES})["logits"]
        assert np.allclose(found, expected, rtol=1e-5, atol=1e-5)
        assert (facts["runtime"], facts["device"], facts["providers"]) == ("openvino", "cpu", ["CPU"])
        assert facts["flags"] == {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0, "NUM_STREAMS": 1}
        assert facts["threads"] == threads or threads == 0
        assert json.dumps(facts)

    def test_strided_and_read_only_input(self, tmp_path: Path) -> None:
        straight = IMAGES[::-1].copy()
        straight.flags.writeable = False
        with open_file("openvino-cpu", write_onnx(tmp_path / "model.onnx", random_weights())) as runner:
            turned = runner.run({"image": IMAGES[::-1]})["logits"]
            assert np.array_equal(turned, runner.run({"image": straight})["logits"])

    def test_outputs_do_not_change_with_the_next_run(self, tmp_path: Path) -> None:
        with open_file("openvino-cpu", write_onnx(tmp_path / "model.onnx", random_weights())) as runner:
            first = runner.run({"image": IMAGES})["logits"]
            kept = first.copy()
            runner.run({"image": 255 - IMAGES})
            assert np.array_equal(first, kept)

    def test_another_precision_is_refused(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from deploy.runners import openvino

        monkeypatch.setitem(openvino._HINTS, "INFERENCE_PRECISION_HINT", "bf16")
        with pytest.raises(NotHereError, match=r"was requested in float32, but OpenVINO .* computes in .*bfloat16.*; use onnxruntime-cpu"):
            open_file("openvino-cpu", write_onnx(tmp_path / "model.onnx", random_weights()))

    def test_an_operation_that_it_does_not_know(self, tmp_path: Path) -> None:
        node = onnx.helper.make_node("Det", ["image"], ["logits"])
        ends = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape) for name, shape in (("image", [3, 3]), ("logits", []))]
        path = tmp_path / "model.onnx"
        graph = onnx.helper.make_graph([node], "main", ends[:1], ends[1:])
        path.write_bytes(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10).SerializeToString())
        with pytest.raises(DamagedError, match=r"is not a model for OpenVINO 20\d\d") as caught:
            open_file("openvino-cpu", path)
        assert "\n" not in str(caught.value)


def test_openvino_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(NotHereError, match=r"OpenVINO cannot be imported .*pip install 'samegraph\[openvino\]'"):
        open_file("openvino-cpu", tmp_path / "model.onnx")
