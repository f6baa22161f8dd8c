"""Networks that this project did not train are within the budget; with one doubled layer they fail.

They are torchvision's, exported by torch.onnx, and the layer is in the middle.
`benchmarks/foreign_models.py` does the same with eight networks and their first and last layers.
"""

import warnings
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from in_process import HereHost

from benchmarks.foreign_models import exported, output_names, perturbed, twice
from deploy.verify.pair import verify_pair
from deploy.verify.request import PairRequest
from deploy.verify.verdict import failure_sentence

pytestmark = [pytest.mark.slow, pytest.mark.parametrize("name", ["resnet18", "squeezenet1_1"])]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr("deploy.verify.sides.HostProcess", HereHost)
    np.savez(tmp_path / "samples.npz", x=np.random.default_rng(0).standard_normal((8, 3, 64, 64)).astype(np.float32))
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield tmp_path


def test_exports_are_within_and_a_wrong_layer_is_outside(folder: Path, name: str) -> None:
    paths = exported(perturbed(name), folder)

    def pair(candidate: Path) -> PairRequest:
        names = output_names(paths["program"], candidate)
        return PairRequest(reference=paths["program"], candidate=candidate, samples=str(folder / "samples.npz"), batch_size=4, names=names)

    for kind in ("optimised", "plain"):
        verdict = verify_pair(pair(paths[kind]))
        assert verdict.passed, failure_sentence(verdict)
        assert verdict.links[0].observed == "budget"
    _, wrong = next(islice(twice(paths["optimised"], folder), 1, None))
    (link,) = verify_pair(pair(wrong)).links
    assert (link.status, link.observed) == ("failed", "outside")
    assert link.place is not None
    assert link.place.operation == "Conv"
