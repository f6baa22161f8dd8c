"""The forms of a model: how else each can run, in float64, and up to its inner tensors."""

from pathlib import Path

import numpy as np
import pytest
from onnx_files import IMAGE, LOGITS, Perceptron, random_weights, write_onnx
from torch import fx

from deploy.runners.forms import Form, MissingForm, RecordingForm, RenamedForm, onnx_form
from deploy.runners.runner import Runner
from deploy.runners.torch import GraphForm, graph_form
from export.errors import NotHereError, UsageError

WEIGHTS = random_weights()
IMAGES = np.random.default_rng(0).integers(0, 256, (5, *(int(size or 0) for size in IMAGE.shape[1:])), np.uint8)


def graph(device: str = "cpu") -> GraphForm:
    return graph_form("graph", fx.symbolic_trace(Perceptron(WEIGHTS)), (IMAGE, LOGITS), device)


@pytest.fixture
def file(tmp_path: Path) -> Form:
    return onnx_form(write_onnx(tmp_path / "model.onnx", WEIGHTS), "onnxruntime-cpu")


def settings(form: Form) -> list[tuple[str, str]]:
    return [(variant.check, variant.setting) for variant in form.variants()]


def test_a_file_is_run_with_other_threads_and_optimisations(file: Form) -> None:
    assert settings(file) == [
        ("threads", "1 thread"),
        ("threads", "3 threads"),
        *(("optimisation", f"optimisation: {level}") for level in ("none", "basic", "extended")),
    ]
    names = []
    for variant in file.variants():
        with variant.open() as runner:
            names.append((runner.name, runner.facts["threads"]))
    assert names == [
        ("onnxruntime-cpu (all)", 1),
        ("onnxruntime-cpu (all)", 3),
        *((f"onnxruntime-cpu ({level})", "all cores") for level in ("none", "basic", "extended")),
    ]


def test_a_graph_is_run_in_another_layout_and_with_other_threads() -> None:
    assert settings(graph()) == [("layout", "channels last"), ("threads", "1 thread"), ("threads", "3 threads")]
    assert settings(graph("cuda:0")) == [("layout", "channels last")]
    seen = []
    for variant in graph().variants():
        with variant.open() as runner:
            seen.append((runner.facts["memory_format"], runner.facts["threads"]))
    assert [layout for layout, _ in seen] == ["channels_last", "contiguous_format", "contiguous_format"]
    assert [threads for _, threads in seen[1:]] == [1, 3]


def logits(runner: Runner) -> np.ndarray:
    with runner:
        return next(iter(runner.run({"image": IMAGES}).values()))


def test_float64_is_the_same_function_in_other_digits(file: Form) -> None:
    wide = [logits(form.open()) for form in (file.float64(), graph().float64()) if form is not None]
    assert [each.dtype for each in wide] == [np.float64, np.float64]
    assert np.abs(wide[0] - wide[1]).max() < 1e-12
    assert 0 < np.abs(wide[0] - logits(file.open())).max() < 1e-4


def test_up_to_its_last_tensor_a_form_gives_its_output(file: Form) -> None:
    for form in (file, graph()):
        last = form.points[-1].name
        assert np.array_equal(logits(form.until(last, {"image": IMAGES})), logits(form.open()))


def test_other_names_reach_the_form_and_its_variants(file: Form) -> None:
    renamed = RenamedForm.of(file, {"picture": "image", "scores": "logits"}, (IMAGE,))
    for opened in (renamed.open(), *(variant.open() for variant in renamed.variants())):
        with opened as runner:
            assert list(runner.run({"picture": IMAGES})) == ["scores"]


def test_what_is_missing_says_why_and_what_was_recorded_has_no_inside() -> None:
    with pytest.raises(NotHereError, match="no PyTorch"):
        MissingForm(runtime="torch", reason="no PyTorch").open()
    recording = RecordingForm(name="outputs.npz", inputs=(IMAGE,), outputs=(LOGITS,), rows=lambda: lambda number: {})
    assert (recording.points, recording.variants(), recording.float64()) == ((), (), None)
    with pytest.raises(UsageError, match="shows no inner tensor 'hidden'"):
        recording.until("hidden", {})
