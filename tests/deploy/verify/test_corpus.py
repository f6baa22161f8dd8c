"""Every planted fault is found and placed, and no harmless change is reported."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from in_process import HereHost

from benchmarks.corpus import FAULTS, HARMLESS, SPECIAL, UNCOMPARABLE, Case, Network, images, network, renamed, trained_weights
from deploy.runners.onnxruntime import OnnxRuntimeRunner
from deploy.verify.pair import verify_pair
from deploy.verify.request import PairRequest
from deploy.verify.verdict import Verdict, failure_sentence
from export.errors import UsageError

WEIGHTS = trained_weights()


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deploy.verify.sides.HostProcess", HereHost)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The reference, and two sets of samples: few and many."""
    folder = tmp_path_factory.mktemp("corpus")
    onnx.save(network(WEIGHTS), folder / "reference.onnx")
    np.savez(folder / "few.npz", image=images(64))
    np.savez(folder / "many.npz", image=images(10_000))
    return folder


def verified(folder: Path, model: onnx.ModelProto, samples: str, path: Path) -> Verdict:
    onnx.save(model, path)
    return verify_pair(PairRequest(reference=folder / "reference.onnx", candidate=path, samples=str(folder / samples), batch_size=256))


def test_the_network_is_the_same_in_both_forms(folder: Path) -> None:
    with OnnxRuntimeRunner(folder / "reference.onnx", optimisation="none") as runner:
        found = runner.run({"image": images(32)})["logits"]
    with torch.inference_mode():
        expected = Network(WEIGHTS)(torch.tensor(images(32))).numpy()
    assert np.abs(found - expected).max() < 1e-4


@pytest.mark.parametrize("case", FAULTS, ids=lambda case: case.name)
def test_a_planted_fault_is_found_and_placed(folder: Path, tmp_path: Path, case: Case) -> None:
    verdict = verified(folder, case.model(WEIGHTS), "many.npz" if case.needs_many else "few.npz", tmp_path / "wrong.onnx")
    (link,) = verdict.links
    assert (verdict.word, link.status, link.observed) == ("fail", "failed", "outside")
    assert link.place is not None
    assert link.place.layer == case.layer, failure_sentence(verdict)
    assert all(each.inside for each in link.place.inputs)
    if case.needs_many:
        assert link.place.worst_sample == link.worst[0].sample == SPECIAL


@pytest.mark.parametrize("case", HARMLESS, ids=lambda case: case.name)
def test_a_harmless_change_is_not_reported(folder: Path, tmp_path: Path, case: Case) -> None:
    verdict = verified(folder, case.model(WEIGHTS), "few.npz", tmp_path / "other.onnx")
    assert verdict.passed, failure_sentence(verdict)
    checks = {check.check for check in verdict.invariance if check.stage == "candidate" and check.status == "passed"}
    assert {"threads", "optimisation", "alone", "batches"} <= checks


def test_what_cannot_be_compared_does_not_pass(folder: Path, tmp_path: Path) -> None:
    renamed_output, narrow = UNCOMPARABLE
    with pytest.raises(UsageError, match="names must match: say which belong together, as in --map logits=scores"):
        verified(folder, renamed_output.model(WEIGHTS), "few.npz", tmp_path / "renamed.onnx")
    (link,) = verified(folder, narrow.model(WEIGHTS), "few.npz", tmp_path / "narrow.onnx").links
    assert (link.status, link.reason, link.place) == ("failed", "logits: float32 and float16", None)


def test_inner_names_are_nobodys_business(folder: Path, tmp_path: Path) -> None:
    assert verified(folder, renamed(network(WEIGHTS)), "few.npz", tmp_path / "renamed.onnx").passed


def test_a_fault_is_placed_under_other_inner_names_too(folder: Path, tmp_path: Path) -> None:
    wrong = next(case for case in FAULTS if case.name == "two classes swapped")
    (link,) = verified(folder, renamed(wrong.model(WEIGHTS)), "few.npz", tmp_path / "wrong.onnx").links
    assert link.place is not None
    assert (link.place.tensor, link.place.operation) == ("logits", "Gemm")


def test_an_output_that_depends_on_the_batch_fails_its_own_check(folder: Path, tmp_path: Path) -> None:
    wrong = next(case for case in FAULTS if case.name == "output depends on the batch")
    onnx.save(wrong.model(WEIGHTS), tmp_path / "wrong.onnx")
    verdict = verify_pair(PairRequest(reference=tmp_path / "wrong.onnx", candidate=tmp_path / "wrong.onnx", samples=str(folder / "few.npz")))
    assert verdict.links[0].status == "passed"
    assert {check.check for check in verdict.invariance if check.status == "failed"} >= {"alone", "batches", "duplicated"}
    assert not verdict.passed
