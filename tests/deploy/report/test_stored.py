"""A bundle with sound models whose verdict, report or metrics were edited or belong to others.

It is refused in one line.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bundles import relist, rewrite_verdict
from commands import Done, pipeline
from made_once import MadeOnce
from quickstart import QUICKSTART, SHORT

from pipeline import run
from pipeline.cli.console import Console
from pipeline.config import load_config
from pipeline.run_folder import RunFolder
from pipeline.run_request import TrainExportRequest


@pytest.fixture(scope="module")
def another(made_once: MadeOnce) -> Path:
    """A bundle of another training of the same network."""

    def make(folder: Path) -> None:
        assert (
            run.carry_out(
                TrainExportRequest(config=load_config(QUICKSTART, (*SHORT, "training.seed=7")), folder=RunFolder(folder)), Console()
            ).failure
            is None
        )

    return made_once.path("another_seed", make) / "bundle"


@pytest.fixture
def refused(capfd: pytest.CaptureFixture[str], bundle: Path) -> Callable[..., Done]:
    """Stored files are examined once the models are in order: after all links, or after one."""

    def verified(*options: str) -> Done:
        done = pipeline(capfd, "verify", bundle, *(options or ("--only", "folded graph -> ONNX file")))
        assert done.code == 5, done.error
        return done

    return verified


@pytest.mark.parametrize("options", [("--samples", "30"), ("--only", "exact ONNX file -> exact ONNX file for TensorRT")])
def test_a_verdict_of_another_training(bundle: Path, another: Path, refused: Callable[..., Done], options: tuple[str, ...]) -> None:
    for name in ("verification.json", "report.html"):
        shutil.copy(another / name, bundle / name)
    relist(bundle)
    assert "verification.json is the verdict on another " in refused(*options).error


def test_a_float_model_of_another_training_beside_the_exact_one(bundle: Path, another: Path, refused: Callable[..., Done]) -> None:
    """Each chain is whole by itself, but they are not of one training."""
    for name in ("model.onnx", "weights.safetensors", "training/weights.safetensors", "training/metrics.jsonl", "manifest.json"):
        shutil.copy(another / name, bundle / name)
    relist(bundle)
    assert "verification.json is the verdict on another " in refused("--samples", "30").error


def test_a_stale_report(bundle: Path, another: Path, refused: Callable[..., Done]) -> None:
    shutil.copy(another / "report.html", bundle / "report.html")
    relist(bundle)
    assert "report.html is not the report of verification.json beside it" in refused().error


def test_metrics_of_another_training(bundle: Path, another: Path, refused: Callable[..., Done]) -> None:
    shutil.copy(another / "training" / "metrics.jsonl", bundle / "training" / "metrics.jsonl")
    relist(bundle)
    assert "metrics.jsonl ends with " in refused().error


def failed(content: dict[str, Any]) -> dict[str, Any]:
    return {**content, "links": [{**link, "status": "failed"} for link in content["links"]]}


@pytest.mark.parametrize(
    ("edit", "found"),
    [
        (lambda content: {**content, "verdict": "fail"}, "it says 'fail' where nothing failed"),
        (lambda content: {**content, "verdict": "perfect"}, "it says 'perfect' where nothing failed"),
        (failed, "it says 'pass' where something failed"),
        (lambda content: {**content, "links": []}, "it has no list of links"),
        (lambda content: {**content, "invariance": [3]}, "it has no list of invariance"),
        (lambda _: {}, "it names no files"),
    ],
)
def test_an_edited_verdict(bundle: Path, refused: Callable[..., Done], edit: Callable[[dict[str, Any]], dict[str, Any]], found: str) -> None:
    rewrite_verdict(bundle, edit(json.loads((bundle / "verification.json").read_bytes())))
    assert f"verification.json is not a verdict on this bundle: {found}; export the bundle again" in refused().error


@pytest.mark.parametrize(("text", "found"), [("[]", "it is not a JSON object"), ("{", "it is not JSON ("), ("[" * 10**5, "it is not JSON (")])
def test_a_verdict_that_is_none(bundle: Path, refused: Callable[..., Done], text: str, found: str) -> None:
    (bundle / "verification.json").write_text(text)
    relist(bundle)
    assert found in refused().error
