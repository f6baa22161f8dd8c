"""The chain on tiny models: the faithful pass, planted faults are found and named.

Nothing passes without being run.
"""

import json
import re
import signal
import tracemalloc
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch
from onnx_files import IMAGE, LOGITS, Perceptron, Weights, pixels, random_weights, write_onnx
from opened import OpenedBy

from deploy.runners.forms import Variant
from deploy.runners.onnxruntime import OnnxRuntimeRunner
from deploy.runners.runner import Array, Runner, TensorSpec
from deploy.runners.torch import TorchRunner
from deploy.verify.invariance import OF_EVERY_STAGE
from deploy.verify.links import Chain, Link, Record, Stage
from deploy.verify.place import Pairing, Places
from deploy.verify.run_chain import run_chain
from deploy.verify.verdict import LinkVerdict, Requirement, TrainingOnlyPart, Verdict, failure_sentence
from export.errors import DamagedError, NotHereError

WEIGHTS = random_weights()
REORDERED = WEIGHTS.changed(first=WEIGHTS.first[::-1], bias=WEIGHTS.bias[::-1], last=WEIGHTS.last[:, ::-1])
"""The same function with its sums in another order: different bits on every machine, in budget."""
IMAGES = pixels(40)
RECORD = Record(
    files={"model.onnx": "ab" * 32},
    samples_made=("noise of PCG64",),
    training_only=(TrainingOnlyPart(name="noise", kind="noise", what="uniform around 1"),),
)


def batches() -> Iterator[dict[str, Array]]:
    for start in range(0, len(IMAGES), 16):
        yield {"image": IMAGES[start : start + 16]}


def torch_stage(name: str, weights: Weights = WEIGHTS, *, precision: str = "float32", gradients: bool = False) -> Stage:
    def opened() -> Runner:
        module = Perceptron(weights)
        return TorchRunner(
            module,
            [IMAGE],
            [LOGITS],
            precision=precision,  # type: ignore[arg-type]
            gradients=gradients,
        )

    return Stage(name=name, form=OpenedBy(runtime="torch", precision=precision, opener=opened))  # type: ignore[arg-type]


def stage(open_: Callable[[], Runner], name: str = "onnx", runtime: str = "onnxruntime-cpu") -> Stage:
    return Stage(name=name, form=OpenedBy(runtime=runtime, precision="float32", opener=open_))


class Altered(Runner):
    """The folded graph, with changed outputs."""

    def __init__(self, alter: Callable[[dict[str, Array]], dict[str, Array]], outputs: tuple[TensorSpec, ...]) -> None:
        self.name, self.inputs, self.outputs = "altered", (IMAGE,), outputs
        self._inner = TorchRunner(Perceptron(WEIGHTS), [IMAGE], [LOGITS])
        self._alter = alter

    @property
    def facts(self) -> Mapping[str, object]:
        return {"runtime": "altered"}

    def _run(self, batch: Mapping[str, Array]) -> dict[str, Array]:
        return self._alter(self._inner.run(batch))

    def close(self) -> None:
        self._inner.close()


def altered(alter: Callable[[dict[str, Array]], dict[str, Array]], *outputs: TensorSpec) -> Stage:
    return stage(lambda: Altered(alter, outputs or (LOGITS,)))


def chain(*last: Stage, required: Requirement = "budget") -> Chain:
    first = (torch_stage("training", gradients=True), torch_stage("folded"))
    return Chain(
        stages=(*first, *last),
        links=(Link("training", "folded", "bitwise"), *(Link("folded", s.name, required) for s in last)),
        reference=torch_stage("float64", precision="float64"),
        training="training",
    )


def _with_variant(stage: Stage, variant: Variant) -> Stage:
    assert isinstance(stage.form, OpenedBy)
    return replace(stage, form=replace(stage.form, others=(variant,)))


def onnx_stage(path: Path, weights: Weights = REORDERED) -> Stage:
    write_onnx(path, weights)
    return stage(lambda: OnnxRuntimeRunner(path, threads=1))


def last_link(verdict: Verdict) -> LinkVerdict:
    assert verdict.links[0].status == "passed"
    return verdict.links[-1]


def test_a_faithful_copy_passes(tmp_path: Path) -> None:
    verdict = run_chain(chain(onnx_stage(tmp_path / "model.onnx")), batches, RECORD)
    assert verdict.passed
    first, last = verdict.links
    assert (first.observed, first.max_ulp, first.max_abs, first.first_difference) == ("bitwise", 0, 0.0, None)
    assert (last.status, last.observed, last.reason) == ("passed", "budget", "")
    assert (last.samples, last.outputs[0].num_values, last.runtime, last.device) == (40, 200, "onnxruntime-cpu", "cpu")
    assert last.max_ulp
    errors = {found.stage: found for found in verdict.errors}
    assert set(errors) == {"training", "folded", "onnx"}
    assert errors["onnx"].budget == last.budget
    assert last.budget is not None
    assert 0 < errors["onnx"].max <= last.budget.max < 1e-3
    assert last.budget.max >= 4 * errors["training"].max > 0
    assert [(check.stage, check.check) for check in verdict.invariance] == [(s, c) for s in ("training", "folded", "onnx") for c in OF_EVERY_STAGE]
    assert {check.status for check in verdict.invariance} == {"passed"}
    assert verdict.samples.count == 40


def fault(**changes: object) -> Weights:
    return WEIGHTS.changed(**changes)


def moved(values: Array) -> Array:
    values = values.copy()
    values[0] += np.float32(1e-3)
    return values


def swapped(values: Array) -> Array:
    return values[[1, 0, *range(2, len(values))]]


@pytest.mark.parametrize(
    ("weights", "reason"),
    [
        (fault(last_bias=moved(WEIGHTS.last_bias)), "the error against float64 is max 0.001, .* the budget is max"),
        (fault(bias=moved(WEIGHTS.bias)), "the budget is"),
        (fault(last=swapped(WEIGHTS.last), last_bias=swapped(WEIGHTS.last_bias)), "the budget is"),
        (fault(first=WEIGHTS.first.astype(ml_dtypes.bfloat16).astype(np.float32)), "the budget is"),
        (fault(output="scores"), r"outputs \['logits'\] on one side, \['scores'\] on the other"),
    ],
    ids=["bias of the last layer", "bias of the first layer", "two classes swapped", "bfloat16 weights", "renamed"],
)
def test_a_wrong_file_fails(tmp_path: Path, weights: Weights, reason: str) -> None:
    verdict = run_chain(chain(onnx_stage(tmp_path / "model.onnx", weights)), batches, RECORD)
    assert not verdict.passed
    link = last_link(verdict)
    assert link.status == "failed"
    assert link.observed == ("outside" if weights.output == "logits" else None)
    assert re.search(reason, link.reason)
    sentence = failure_sentence(verdict)
    assert sentence.startswith(f"folded -> onnx failed: {link.reason}")
    assert "\n" not in sentence


def test_swapped_classes_are_no_ties(tmp_path: Path) -> None:
    weights = fault(last=swapped(WEIGHTS.last), last_bias=swapped(WEIGHTS.last_bias))
    link = last_link(run_chain(chain(onnx_stage(tmp_path / "model.onnx", weights)), batches, RECORD))
    assert link.top1_changes > link.ties == 0
    assert {tuple(sorted(change.classes)) for change in link.changes} == {(0, 1)}


def test_a_missing_output_fails() -> None:
    extra = TensorSpec("extra", "float32", (None, 5))
    two = altered(lambda outputs: {**outputs, "extra": outputs["logits"]}, LOGITS, extra)
    link = last_link(run_chain(chain(two), batches, RECORD))
    assert (link.status, link.observed) == ("failed", "outside")
    assert link.reason == "the first side lacks the outputs ['extra']"


def test_nan_on_one_side_fails() -> None:
    def with_nan(outputs: dict[str, Array]) -> dict[str, Array]:
        outputs["logits"][3, 2] = np.nan
        return outputs

    link = last_link(run_chain(chain(altered(with_nan)), batches, RECORD))
    assert (link.status, link.observed) == ("failed", "outside")
    assert "3 output values are NaN or infinite, 3 of them only there" in link.reason
    assert link.first_difference is not None
    assert link.first_difference.index == (3, 2)


def test_another_dtype_fails_even_where_the_values_are_equal() -> None:
    wide = replace(LOGITS, dtype="float64")
    stage = altered(lambda outputs: {"logits": outputs["logits"].astype(np.float64)}, wide)
    link = last_link(run_chain(chain(stage), batches, RECORD))
    assert (link.status, link.reason) == ("failed", "logits: float32 and float64")


def test_within_the_budget_is_not_bitwise() -> None:
    def nudged(outputs: dict[str, Array]) -> dict[str, Array]:
        return {"logits": np.nextafter(outputs["logits"], np.float32(0))}

    assert last_link(run_chain(chain(altered(nudged)), batches, RECORD)).status == "passed"
    link = last_link(run_chain(chain(altered(nudged), required="bitwise"), batches, RECORD))
    assert (link.status, link.observed, link.max_ulp) == ("failed", "budget", 1)
    assert link.reason.startswith("required bitwise, but 200 of 200 values have different bits, max_ulp 1, ")


def test_one_wrong_sample_in_the_last_batch_is_found() -> None:
    def wrong_at_the_end(outputs: dict[str, Array]) -> dict[str, Array]:
        if len(outputs["logits"]) == 8:
            outputs["logits"][7, 4] += 1
        return outputs

    verdict = run_chain(chain(altered(wrong_at_the_end)), batches, RECORD)
    link = last_link(verdict)
    assert link.status == "failed"
    assert link.first_difference is not None
    assert (link.first_difference.sample, link.first_difference.index) == (39, (39, 4))


class TestAbsent:
    def missing(self) -> Stage:
        def opened() -> Runner:
            raise NotHereError("cuda was requested, there is none")

        return stage(opened, "cuda", "onnxruntime-cuda")

    def test_is_not_run_and_never_passed(self, tmp_path: Path) -> None:
        verdict = run_chain(chain(onnx_stage(tmp_path / "model.onnx"), self.missing()), batches, RECORD)
        link = last_link(verdict)
        assert (link.status, link.observed, link.samples) == ("not run", None, 0)
        assert (link.max_ulp, link.max_abs) == (None, None)
        assert link.reason == "cuda was requested, there is none"
        assert verdict.passed
        assert {check.status for check in verdict.invariance if check.stage == "cuda"} == {"not run"}

    def test_required_raises(self) -> None:
        with pytest.raises(NotHereError, match="cuda was requested"):
            run_chain(chain(self.missing()), batches, RECORD, require={"onnxruntime-cuda"})

    def test_required_but_not_in_the_chain_raises(self) -> None:
        with pytest.raises(NotHereError, match="tensorrt must run, but the chain has only onnxruntime-cuda, torch"):
            run_chain(chain(self.missing()), batches, RECORD, require={"tensorrt"})

    def test_nothing_run_is_no_pass(self) -> None:
        only = Chain(
            stages=(torch_stage("training"), self.missing()),
            links=(Link("training", "cuda", "budget"),),
            reference=torch_stage("float64", precision="float64"),
            training="training",
        )
        verdict = run_chain(only, batches, RECORD)
        assert not verdict.passed
        assert failure_sentence(verdict) == ("no link passed; training -> cuda not run: cuda was requested, there is none")


def test_what_a_runtime_raises_is_a_finding() -> None:
    def raises(outputs: dict[str, Array]) -> dict[str, Array]:
        raise RuntimeError("out of\nmemory")

    verdict = run_chain(chain(altered(raises)), batches, RECORD)
    link = last_link(verdict)
    assert (link.status, link.observed) == ("failed", None)
    assert link.reason == "onnx raised RuntimeError: out of memory"


def test_what_a_runtime_raises_late_is_a_finding() -> None:
    def raises(outputs: dict[str, Array]) -> dict[str, Array]:
        if len(outputs["logits"]) == 8:
            raise RuntimeError("late")
        return outputs

    link = last_link(run_chain(chain(altered(raises)), batches, RECORD))
    assert (link.status, link.reason, link.samples) == ("failed", "onnx raised RuntimeError: late", 32)


def test_what_opening_raises_is_a_finding_but_a_damaged_file_ends_the_run() -> None:
    def breaks() -> Runner:
        raise ValueError("no kernel")

    def damaged() -> Runner:
        raise DamagedError("model.onnx is cut off")

    link = last_link(run_chain(chain(stage(breaks)), batches, RECORD))
    assert (link.status, link.reason) == ("failed", "onnx could not be opened: ValueError: no kernel")
    with pytest.raises(DamagedError):
        run_chain(chain(stage(damaged)), batches, RECORD)


def test_no_batch_is_a_failure() -> None:
    verdict = run_chain(chain(), lambda: iter([]), RECORD)
    assert [link.status for link in verdict.links] == ["failed"]
    assert verdict.links[0].reason == "there was no batch to compare"
    assert not verdict.passed


def test_without_a_reference_nothing_is_inside_a_budget(tmp_path: Path) -> None:
    class Breaks(torch.nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            raise ValueError("none")

    whole = chain(onnx_stage(tmp_path / "model.onnx"))
    assert whole.reference is not None
    broken = replace(
        whole.reference,
        form=OpenedBy(runtime="torch", precision="float64", opener=lambda: TorchRunner(Breaks(), [IMAGE], [LOGITS], precision="float64")),
    )
    link = last_link(run_chain(replace(whole, reference=broken), batches, RECORD))
    assert (link.status, link.observed, link.reason) == ("failed", "outside", "float64 raised ValueError: none")


def test_a_reference_that_breaks_late_leaves_no_budget(tmp_path: Path) -> None:
    class BreaksLate(Perceptron):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            if len(image) == 8:
                raise ValueError("late")
            return super().forward(image)

    whole = chain(onnx_stage(tmp_path / "model.onnx"))
    assert whole.reference is not None
    late = replace(
        whole.reference,
        form=OpenedBy(runtime="torch", precision="float64", opener=lambda: TorchRunner(BreaksLate(WEIGHTS), [IMAGE], [LOGITS], precision="float64")),
    )
    link = last_link(run_chain(replace(whole, reference=late), batches, RECORD))
    assert (link.status, link.observed, link.budget) == ("failed", "outside", None)


class TestFromABadStageToAGoodOne:
    def link(self, bad: Stage) -> LinkVerdict:
        whole = chain(bad)
        links = (*whole.links[:1], Link("onnx", "folded", "budget"))
        return last_link(run_chain(replace(whole, links=links), batches, RECORD))

    def test_other_classes_are_not_excused_by_its_errors(self) -> None:
        link = self.link(altered(lambda outputs: {"logits": outputs["logits"][:, [1, 0, 2, 3, 4]]}))
        assert (link.status, link.observed, link.ties) == ("failed", "outside", 0)
        assert link.reason.startswith(f"{link.top1_changes} of {link.top1_changes} changes of the first class are no")

    def test_its_extra_output_fails_the_link(self) -> None:
        extra = TensorSpec("extra", "float32", (None, 5))
        link = self.link(altered(lambda outputs: {**outputs, "extra": outputs["logits"]}, LOGITS, extra))
        assert (link.status, link.observed) == ("failed", "outside")


class TestInvariance:
    def run(self, alter: Callable[[dict[str, Array]], dict[str, Array]], required: Requirement) -> dict[str, str]:
        whole = chain(replace(altered(alter), invariance_required=required))
        verdict = run_chain(whole, batches, RECORD)
        assert verdict.passed == all(check.status == "passed" for check in verdict.invariance)
        return {check.check: check.status for check in verdict.invariance if check.stage == "onnx" and check.status != "passed"}

    def test_an_answer_that_changes_from_run_to_run(self) -> None:
        state = {"runs": 0}

        def drifts(outputs: dict[str, Array]) -> dict[str, Array]:
            state["runs"] += 1
            return {"logits": outputs["logits"] + (np.float32(0.01) if state["runs"] == 2 else 0)}

        assert self.run(drifts, "budget") == {"rerun": "failed"}

    def test_an_answer_that_depends_on_the_size_of_the_batch(self) -> None:
        def depends(outputs: dict[str, Array]) -> dict[str, Array]:
            return {"logits": outputs["logits"] + (np.float32(0.01) if len(outputs["logits"]) == 1 else 0)}

        assert self.run(depends, "budget") == {"alone": "failed", "batches": "failed"}

    def test_an_answer_that_depends_on_the_place_in_the_batch(self) -> None:
        def depends(outputs: dict[str, Array]) -> dict[str, Array]:
            logits = outputs["logits"]
            if len(logits) > 1 and np.ptp(logits, axis=0).max() < 1e-4:
                logits[-1] += np.float32(0.01)
            return outputs

        assert self.run(depends, "budget") == {"duplicated": "failed"}

    def test_bitwise_is_stricter_than_the_budget(self) -> None:
        def one_ulp(outputs: dict[str, Array]) -> dict[str, Array]:
            logits = outputs["logits"]
            return {"logits": np.nextafter(logits, np.float32(9)) if len(logits) == 1 else logits}

        assert self.run(one_ulp, "budget") == {}
        assert self.run(one_ulp, "bitwise")["alone"] == "failed"

    def test_a_variant_of_a_stage_is_checked_and_an_absent_stage_has_none(self) -> None:
        other = altered(lambda outputs: {"logits": outputs["logits"] + np.float32(0.01)})
        variant = Variant(check="threads", setting="3 threads", open=other.form.open)
        same = _with_variant(altered(lambda outputs: outputs), variant)
        assert failure_sentence(run_chain(chain(same), batches, RECORD)).startswith("threads of onnx failed: the error against float64 is max 0.01,")
        absent = _with_variant(TestAbsent().missing(), variant)
        checks = run_chain(chain(absent), batches, RECORD).invariance
        assert [(each.check, each.status) for each in checks if each.stage == "cuda"][-1] == ("threads", "not run")

    def test_not_checked_where_it_is_not_asked_for(self) -> None:
        whole = chain()
        stages = tuple(replace(stage, invariance_required=None) for stage in whole.stages)
        assert run_chain(replace(whole, stages=stages), batches, RECORD).invariance == ()


@pytest.mark.parametrize("link", [Link("training", "nowhere", "budget"), Link("training", "training", "bitwise")])
def test_a_link_joins_two_known_stages(link: Link) -> None:
    with pytest.raises(ValueError, match="two different stages"):
        replace(chain(), links=(link,))


def test_names_of_stages_are_their_own() -> None:
    with pytest.raises(ValueError, match="one name"):
        chain(torch_stage("folded"))


def test_memory_does_not_grow_with_the_samples() -> None:
    def repeated(times: int) -> Callable[[], Iterator[dict[str, Array]]]:
        return lambda: (batch for _ in range(times) for batch in batches())

    def peak(times: int) -> int:
        tracemalloc.start()
        run_chain(chain(altered(lambda outputs: {"logits": outputs["logits"][:, ::-1]})), repeated(times), RECORD)
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size

    peak(40)  # for imports, caches, and the changes that are kept, which are bounded
    before = peak(40)
    assert peak(160) < before * 1.2


def test_json_has_the_fields_of_the_design(tmp_path: Path) -> None:
    verdict = run_chain(chain(onnx_stage(tmp_path / "model.onnx")), batches, RECORD)
    content = json.loads(json.dumps(verdict.to_json(), allow_nan=False))
    assert content["verdict"] == "pass"
    parts = {"training_only", "not_foldable", "frozen_statistics"}
    fields = {"links", "errors", "invariance", "environment", "stages", "files", "samples", "interrupted", *parts}
    assert set(content) == {"verdict", "format_version", *fields}
    assert set(content["links"][1]) == {
        *("from", "to", "runtime", "device", "required", "observed", "status", "reason", "samples", "outputs"),
        *("max_ulp", "max_abs", "budget", "tolerance", "top1_changes", "ties", "changes", "first_difference", "worst", "place", "growth"),
    }
    assert content["links"][1]["first_difference"]["output"] == "logits"
    assert content["training_only"] == [{"name": "noise", "kind": "noise", "what": "uniform around 1", "off_since_step": None}]
    assert content["files"] == {"model.onnx": "ab" * 32}
    assert content["samples"]["how"] == ["noise of PCG64"]
    assert content["stages"]["onnx"]["providers"] == ["CPUExecutionProvider"]
    assert content["environment"]["packages"]["torch"] == torch.__version__.partition("+")[0]


def test_json_has_words_for_what_it_lacks() -> None:
    def with_nan(outputs: dict[str, Array]) -> dict[str, Array]:
        return {"logits": outputs["logits"] * np.float32(np.nan)}

    link = run_chain(chain(altered(with_nan)), batches, RECORD).to_json()["links"]
    assert "NaN" in json.dumps(link, allow_nan=False)


class TestInterrupted:
    def interrupting(self, after: int) -> Callable[[], Iterator[dict[str, Array]]]:
        def given() -> Iterator[dict[str, Array]]:
            for number, batch in enumerate(batches(), start=1):
                if number == after:
                    signal.raise_signal(signal.SIGINT)
                yield batch

        return given

    def test_the_batch_under_way_is_finished_and_the_verdict_is_no_pass(self, tmp_path: Path) -> None:
        verdict = run_chain(chain(onnx_stage(tmp_path / "model.onnx")), self.interrupting(1), RECORD)
        assert (verdict.word, verdict.passed, verdict.samples.count) == ("incomplete", False, 16)
        assert [link.status for link in verdict.links] == ["passed", "passed"]

    def test_what_failed_before_has_failed(self, tmp_path: Path) -> None:
        wrong = onnx_stage(tmp_path / "model.onnx", fault(bias=moved(WEIGHTS.bias)))
        verdict = run_chain(chain(wrong), self.interrupting(1), RECORD)
        assert (verdict.word, verdict.interrupted) == ("fail", True)

    def test_whoever_asks_twice_does_not_wait(self) -> None:
        def twice() -> Iterator[dict[str, Array]]:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
            yield from batches()

        with pytest.raises(KeyboardInterrupt):
            run_chain(chain(), twice, RECORD)

    def test_while_the_place_is_looked_for_the_verdict_stands_without_it(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def interrupt(chain: Chain, link: Link, batch: Mapping[str, Array]) -> Places:
            raise KeyboardInterrupt

        monkeypatch.setattr("deploy.verify.run_chain.cut_link", interrupt)
        verdict = run_chain(chain(onnx_stage(tmp_path / "model.onnx", fault(bias=moved(WEIGHTS.bias)))), batches, RECORD)
        assert (verdict.word, verdict.interrupted, verdict.samples.count) == ("fail", True, 40)
        assert last_link(verdict).place is None


class TestWhereTheSearchRuns:
    """The search uses few samples first, including the worst.

    It uses the whole batch if those show nothing, or if no smaller batch is taken.
    """

    class Nowhere(Places):
        def pairings(self) -> list[Pairing]:
            return []

        def at(self, pairing: Pairing) -> None:
            return None

    @pytest.fixture
    def tried(self, monkeypatch: pytest.MonkeyPatch) -> list[Mapping[str, Array]]:
        tried: list[Mapping[str, Array]] = []

        def places(chain: Chain, link: Link, batch: Mapping[str, Array]) -> Places:
            tried.append(batch)
            return self.Nowhere()

        monkeypatch.setattr("deploy.verify.run_chain.cut_link", places)
        return tried

    def batches_tried(self, path: Path, tried: list[Mapping[str, Array]], *, checked: bool) -> list[Mapping[str, Array]]:
        wrong = chain(onnx_stage(path, fault(bias=moved(WEIGHTS.bias))))
        stages = wrong.stages if checked else tuple(replace(stage, invariance_required=None) for stage in wrong.stages)
        verdict = run_chain(replace(wrong, stages=stages), batches, RECORD)
        worst = last_link(verdict).worst[0].sample
        assert all(any(np.array_equal(IMAGES[worst], row) for row in batch["image"]) for batch in tried)
        return tried

    def test_few_and_then_all(self, tmp_path: Path, tried: list[Mapping[str, Array]]) -> None:
        assert [len(batch["image"]) for batch in self.batches_tried(tmp_path / "model.onnx", tried, checked=True)] in ([8, 16], [8, 8])

    def test_all_where_nothing_smaller_was_seen_to_run(self, tmp_path: Path, tried: list[Mapping[str, Array]]) -> None:
        (batch,) = self.batches_tried(tmp_path / "model.onnx", tried, checked=False)
        assert len(batch["image"]) in (8, 16)
