"""Pairs of forms from files: what is the same passes, and what is not fails.

What cannot be compared is one line.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from in_process import HereHost
from onnx import TensorProto, helper, numpy_helper
from onnx_files import random_weights, write_onnx
from programs import exported, exported_two_ends, small_net, write_onnx_of, write_program
from safetensors.numpy import save_file

from deploy.compare.tolerance import Tolerance
from deploy.runners.pt2 import from_exported
from deploy.runners.torch import TorchRunner
from deploy.sandbox.process import Limits
from deploy.verify.pair import verify_pair
from deploy.verify.request import PairRequest
from deploy.verify.verdict import LinkVerdict, Verdict, failure_sentence
from export.errors import DamagedError, NotHereError, SamegraphError, UsageError

X = np.random.default_rng(0).normal(size=(9, 3, 8, 8)).astype(np.float32)


@pytest.fixture(autouse=True)
def in_this_process(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Most of these tests are about requests, and run in this process.

    Those about untrusted files have a host process.
    """
    if "hosted" not in request.keywords:
        monkeypatch.setattr("deploy.verify.sides.HostProcess", HereHost)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same network in several forms, samples, and its recorded outputs."""
    folder = tmp_path_factory.mktemp("pairs")
    program = exported(small_net())
    write_program(folder / "net.pt2", program)
    write_onnx_of(folder / "net.onnx", program)
    write_onnx_of(folder / "plain.onnx", program, optimize=False)
    np.savez(folder / "x.npz", x=X)
    whole = from_exported(program)
    outputs = TorchRunner(whole.module, whole.inputs, whole.outputs).run({"x": X})
    np.savez(folder / "recorded.npz", **outputs)  # type: ignore[arg-type]
    return folder


def pair(folder: Path, reference: str, candidate: str, **options: object) -> PairRequest:
    asked = PairRequest(reference=folder / reference, candidate=folder / candidate, samples=str(folder / "x.npz"), batch_size=4)
    return replace(asked, **options)  # type: ignore[arg-type]


def verified(folder: Path, reference: str, candidate: str, **options: object) -> Verdict:
    return verify_pair(pair(folder, reference, candidate, **options))


def only_link(verdict: Verdict) -> LinkVerdict:
    (link,) = verdict.links
    return link


@pytest.mark.parametrize(
    ("reference", "candidate"),
    [pytest.param("net.pt2", "net.onnx", marks=pytest.mark.hosted), ("plain.onnx", "net.onnx"), ("net.pt2", "plain.onnx")],
)
def test_two_forms_of_one_function_are_within_the_derived_budget(files: Path, reference: str, candidate: str) -> None:
    verdict = verified(files, reference, candidate)
    link = only_link(verdict)
    assert verdict.passed, failure_sentence(verdict)
    assert (link.required, link.samples, [output.name for output in link.outputs]) == ("budget", 9, ["linear"])
    assert link.budget is not None
    assert link.budget.max < 1e-4
    assert set(verdict.files) == {f"reference {reference}", f"candidate {candidate}"}
    checks = {(check.stage, check.check): check.status for check in verdict.invariance}
    assert set(checks.values()) == {"passed"}
    assert {check for stage, check in checks if stage == "candidate"} >= {"rerun", "alone", "batches", "threads", "optimisation"}


def doubled(net: torch.nn.Module) -> None:
    with torch.no_grad():
        net.second.weight.mul_(2)  # type: ignore[union-attr,operator]


def test_a_layer_that_is_twice_as_large_is_outside(files: Path, tmp_path: Path) -> None:
    write_onnx_of(tmp_path / "wrong.onnx", exported(small_net(doubled)))
    verdict = verified(files, "net.pt2", str(tmp_path / "wrong.onnx"))
    assert (verdict.word, only_link(verdict).observed) == ("fail", "outside")
    assert "the budget is" in only_link(verdict).reason
    place = only_link(verdict).place
    assert place is not None
    assert (place.operation, place.layer, [each.inside for each in place.inputs]) == ("Conv", "second", [True])
    assert "it begins at Conv of second (" in failure_sentence(verdict)


def wrong_sum(model: onnx.ModelProto) -> None:
    """The join subtracts."""
    next(node for node in model.graph.node if node.op_type == "Add").op_type = "Sub"


@pytest.mark.parametrize("renamed", [False, True], ids=["names kept", "inner names changed"])
def test_the_place_in_two_onnx_files(files: Path, tmp_path: Path, renamed: bool) -> None:
    model = onnx.load(files / "net.onnx")
    wrong_sum(model)
    if renamed:
        names = {output: f"inner_{number}" for number, node in enumerate(model.graph.node) for output in node.output if output != "linear"}
        for node in model.graph.node:
            node.input[:] = [names.get(each, each) for each in node.input]
            node.output[:] = [names.get(each, each) for each in node.output]
            del node.metadata_props[:]
        del model.graph.value_info[:]
        next(node for node in model.graph.node if node.op_type == "Sub").op_type = "Add"  # so that both orders are alike, but the weights differ
        weight = next(each for each in model.graph.initializer if each.name == "second.weight")
        weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(1.01), weight.name))
    onnx.save(model, tmp_path / "wrong.onnx")
    place = only_link(verified(files, "net.onnx", str(tmp_path / "wrong.onnx"))).place
    assert place is not None
    assert place.operation == ("Conv" if renamed else "Sub")
    assert {each.inside for each in place.inputs} == {True}


def test_a_bundle_stands_for_its_model(bundle: Path) -> None:
    verdict = verify_pair(PairRequest(reference=bundle, candidate=bundle / "model.onnx", samples="12"))
    assert verdict.passed
    assert set(verdict.files) == {"reference model.onnx", "candidate model.onnx"}
    assert len(set(verdict.files.values())) == 1


class TestRecorded:
    def test_recorded_outputs_as_candidate_have_the_references_budget(self, files: Path) -> None:
        verdict = verified(files, "net.pt2", "recorded.npz")
        assert verdict.passed
        assert only_link(verdict).observed == "budget"  # recorded in one batch, run in three
        assert {check.stage for check in verdict.invariance} == {"reference"}

    def test_as_reference_they_need_a_tolerance_of_a_human(self, files: Path) -> None:
        with pytest.raises(UsageError, match=r"recorded\.npz has no evaluation in float64 .* --max-ulp, or with --atol and --rtol, or --require"):
            verified(files, "recorded.npz", "net.onnx")
        verdict = verified(files, "recorded.npz", "net.onnx", tolerance=Tolerance(atol=1e-5))
        link = only_link(verdict)
        assert (verdict.passed, link.required, link.observed, link.budget) == (True, "tolerance", "tolerance", None)
        assert verdict.to_json()["links"][0]["tolerance"] == {"max_ulp": None, "atol": 1e-5, "rtol": None, "chosen_by": "a human"}  # type: ignore[index,call-overload]
        strict = only_link(verified(files, "recorded.npz", "net.onnx", tolerance=Tolerance(max_ulp=0)))
        assert (strict.status, strict.observed) == ("failed", "outside")
        assert "values are beyond 0 ulp, chosen by a human, the first is linear[" in strict.reason

    def test_two_recordings_need_no_samples(self, files: Path, tmp_path: Path) -> None:
        recorded = np.load(files / "recorded.npz")["linear"]
        np.savez(tmp_path / "other.npz", linear=np.nextafter(recorded, np.float32(9)))
        same = verify_pair(PairRequest(reference=files / "recorded.npz", candidate=files / "recorded.npz", bitwise=True))
        assert (same.passed, only_link(same).samples) == (True, 9)
        other = PairRequest(reference=files / "recorded.npz", candidate=tmp_path / "other.npz", tolerance=Tolerance(max_ulp=1))
        assert verify_pair(other).passed
        assert not verify_pair(replace(other, tolerance=None, bitwise=True)).passed

    def test_in_safetensors_as_well_as_the_samples(self, files: Path, tmp_path: Path) -> None:
        save_file({"x": X}, tmp_path / "x.safetensors")
        save_file(dict(np.load(files / "recorded.npz")), tmp_path / "recorded.safetensors")
        verdict = verified(files, "net.pt2", str(tmp_path / "recorded.safetensors"), samples=str(tmp_path / "x.safetensors"))
        assert verdict.passed
        assert verdict.samples.how == ("9 samples from x.safetensors",)
        wrong = {name: rows + np.float32(0.01) for name, rows in np.load(files / "recorded.npz").items()}
        save_file(wrong, tmp_path / "wrong.safetensors")
        assert not verified(files, "net.pt2", str(tmp_path / "wrong.safetensors")).passed

    def test_of_other_samples_they_are_refused(self, files: Path, tmp_path: Path) -> None:
        np.savez(tmp_path / "fewer.npz", linear=np.zeros((5, 5), np.float32))
        with pytest.raises(UsageError, match=r"fewer\.npz holds outputs of 5 samples, not of 9"):
            verified(files, "net.pt2", str(tmp_path / "fewer.npz"))


class TestNames:
    def renamed(self, folder: Path, path: Path) -> str:
        model = onnx.load(folder / "net.onnx")
        model.graph.input[0].name = model.graph.node[0].input[0] = "image"
        model.graph.output[0].name = model.graph.node[-1].output[0] = "scores"
        onnx.save(model, path)
        return str(path)

    def test_must_match_or_be_mapped(self, files: Path, tmp_path: Path) -> None:
        other = self.renamed(files, tmp_path / "renamed.onnx")
        with pytest.raises(UsageError, match=r"inputs are \['x'\] and \['image'\], the outputs are .*; .* --map x=image --map linear=scores$"):
            verified(files, "net.pt2", other)
        with pytest.raises(UsageError, match=r"the outputs are \['linear'\] and \['scores'\]; .* --map linear=scores"):
            verified(files, "net.pt2", other, names={"x": "image"})
        verdict = verified(files, "net.pt2", other, names={"x": "image", "linear": "scores"})
        assert verdict.passed
        assert verdict.stages["candidate"]["names"] == {"x": "image", "linear": "scores"}

    def test_a_map_of_what_is_not_there(self, files: Path) -> None:
        with pytest.raises(UsageError, match=r"--map image=x: net\.pt2 has no 'image', only x, linear; write REFERENCE=CANDIDATE"):
            verified(files, "net.pt2", "net.onnx", names={"image": "x"})

    def test_an_output_that_only_one_side_has_is_a_difference(self, files: Path, tmp_path: Path) -> None:
        model = onnx.load(files / "net.onnx")
        model.graph.output.append(helper.make_tensor_value_info(model.graph.node[-1].input[0], TensorProto.FLOAT, ["n", 6]))
        onnx.save(model, tmp_path / "more.onnx")
        link = only_link(verified(files, "net.pt2", str(tmp_path / "more.onnx")))
        assert (link.status, link.reason.partition(" [")[0]) == ("failed", "the first side lacks the outputs")


def test_several_inputs_outputs_dtypes_and_free_sizes(tmp_path: Path) -> None:
    program = exported_two_ends()
    write_program(tmp_path / "two.pt2", program)
    write_onnx_of(tmp_path / "two.onnx", program)
    there = [value.name for value in onnx.load(tmp_path / "two.onnx").graph.output]
    ends = from_exported(program)
    length = str(ends.inputs[0].shape[1])
    asked = PairRequest(
        reference=tmp_path / "two.pt2",
        candidate=tmp_path / "two.onnx",
        samples="10",
        batch_size=4,
        names={spec.name: name for spec, name in zip(ends.outputs, there, strict=True) if spec.name != name},
    )
    with pytest.raises(UsageError, match=f"--size {length}=NUMBER"):
        verify_pair(asked)
    verdict = verify_pair(replace(asked, sizes={length: 6}))
    assert verdict.passed, failure_sentence(verdict)
    assert [output.dtype for output in only_link(verdict).outputs] == ["float32", "int64", "bool"]
    rng = np.random.default_rng(1)
    for name, size in (("a", 3), ("b", 7)):
        np.savez(tmp_path / f"{name}.npz", tokens=rng.integers(0, 8, (5, size)), mask=rng.normal(size=(5, size)).astype(np.float32))
    from_files = verify_pair(replace(asked, samples=str(tmp_path)))
    assert (from_files.passed, only_link(from_files).samples) == (True, 10)


def test_what_is_not_batched_is_not_run_in_other_batches(tmp_path: Path, files: Path) -> None:
    verdict = verified(files, "net.onnx", "net.onnx", batched=False)
    assert {check.reason for check in verdict.invariance if check.check == "alone"} == {"the first axis does not count samples"}


def float16_of(model: onnx.ModelProto) -> onnx.ModelProto:
    """Weights and computation in float16, floats in and out."""
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name))
    model.graph.node[0].input[0] = "narrow"
    model.graph.node[-1].output[0] = "narrow_out"
    model.graph.node.insert(0, helper.make_node("Cast", ["x"], ["narrow"], to=TensorProto.FLOAT16))
    model.graph.node.append(helper.make_node("Cast", ["narrow_out"], ["linear"], to=TensorProto.FLOAT))
    del model.graph.value_info[:]
    return model


def test_the_budget_is_that_of_the_precision_that_was_asked_for(files: Path, tmp_path: Path) -> None:
    onnx.save(float16_of(onnx.load(files / "net.onnx")), tmp_path / "half.onnx")
    asked = only_link(verified(files, "net.pt2", str(tmp_path / "half.onnx"), precision="float16"))
    whole = only_link(verified(files, "net.pt2", "net.onnx"))
    assert asked.status == "passed", asked.reason
    assert asked.budget is not None
    assert whole.budget is not None
    assert asked.budget.max == pytest.approx(2**13 * whole.budget.max, rel=1e-6)
    not_asked = only_link(verified(files, "net.pt2", str(tmp_path / "half.onnx")))
    assert (not_asked.status, not_asked.observed, not_asked.budget) == ("failed", "outside", whole.budget)


class TestOneLine:
    """What a user gets wrong, and what somebody put into a file."""

    def external(self, path: Path) -> None:
        model = onnx.load(write_onnx(path, random_weights()))
        tensor = model.graph.initializer[0]
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="../../secret")
        path.write_bytes(model.SerializeToString())

    def custom(self, path: Path) -> None:
        model = onnx.load(write_onnx(path, random_weights()))
        model.opset_import.append(helper.make_opsetid("com.evil", 1))
        model.graph.node[0].domain = "com.evil"
        path.write_bytes(model.SerializeToString())

    def cycle(self, path: Path) -> None:
        model = onnx.load(write_onnx(path, random_weights()))
        model.graph.node[1].input[0] = "hidden"
        path.write_bytes(model.SerializeToString())

    def huge_claim(self, path: Path) -> None:
        """A tensor that claims 3 GB and holds 4 bytes."""
        model = onnx.load(write_onnx(path, random_weights()))
        tensor = next(each for each in model.graph.initializer if each.name == "first")
        tensor.ClearField("dims")
        tensor.dims.extend([3 * 2**28, 1])
        tensor.raw_data = b"1234"
        path.write_bytes(model.SerializeToString())

    def huge_file(self, path: Path) -> None:
        with path.open("wb") as file:
            file.truncate(3 * 2**30)

    @pytest.mark.hosted
    @pytest.mark.parametrize(
        ("write", "error", "found"),
        [
            ("text", DamagedError, r"model\.onnx is not an ONNX file"),
            ("external", DamagedError, "is external data, kept in another file"),
            ("custom", DamagedError, "operations of 'com.evil'"),
            ("cycle", DamagedError, "model.onnx"),
            ("huge_claim", DamagedError, "model.onnx"),
            ("huge_file", DamagedError, "has 3221225472 bytes, an ONNX file has at most"),
        ],
    )
    def test_a_bad_model(self, files: Path, tmp_path: Path, write: str, error: type[SamegraphError], found: str) -> None:
        path = tmp_path / "model.onnx"
        if write == "text":
            path.write_text("hello")
        else:
            getattr(self, write)(path)
        with pytest.raises(error, match=found) as caught:
            verify_pair(PairRequest(reference=path, candidate=path, samples="4", limits=Limits(gibibytes=4)))
        assert "\n" not in str(caught.value)
        assert "/0.onnx" not in str(caught.value)

    @pytest.mark.parametrize(
        ("make", "error", "found"),
        [
            (lambda p: replace(p, samples=None), UsageError, "nothing says what to compare on; add --samples"),
            (lambda p: replace(p, candidate=p.candidate.with_name("none.onnx")), UsageError, r"none\.onnx does not exist; give a model"),
            (lambda p: replace(p, candidate=p.candidate.parent), UsageError, r"is a folder without manifest\.json, so no bundle"),
            (lambda p: replace(p, bitwise=True, tolerance=Tolerance(max_ulp=1)), UsageError, "exclude each other"),
            (lambda p: replace(p, runtimes=("tensorrt",)), NotHereError, "runtime 'tensorrt' was requested"),
            (lambda p: replace(p, runtimes=("onnxruntime-cuda",), require=("onnxruntime-cuda",)), NotHereError, "onnxruntime-cuda"),
            (lambda p: replace(p, only="folded"), UsageError, "--only 'folded' fits 0 links; choose one of 'reference -> candidate'"),
        ],
    )
    def test_a_mistake(self, files: Path, make: Callable[[PairRequest], PairRequest], error: type[SamegraphError], found: str) -> None:
        with pytest.raises(error, match=found) as caught:
            verify_pair(make(pair(files, "net.onnx", "net.onnx")))
        assert "\n" not in str(caught.value)

    def test_other_kinds_of_files(self, files: Path) -> None:
        (files / "net.txt").touch()
        with pytest.raises(UsageError, match=r"net\.txt is of no kind that can be compared; give a model"):
            verified(files, "net.pt2", "net.txt")

    def test_inputs_that_no_sample_fits(self, files: Path, tmp_path: Path) -> None:
        write_onnx(tmp_path / "other.onnx", random_weights())
        with pytest.raises(UsageError, match=r"net\.onnx takes x .*, other\.onnx takes x .*; the same samples cannot be given to both"):
            verified(files, "net.onnx", str(tmp_path / "other.onnx"), names={"x": "image", "linear": "logits"})

    def test_a_runtime_that_is_not_here_is_not_run(self, files: Path) -> None:
        with pytest.raises(NotHereError, match="onnxruntime-cuda"):
            verified(files, "net.onnx", "net.onnx", runtimes=("onnxruntime-cuda",))
        verdict = verified(files, "net.onnx", "net.onnx", runtimes=("onnxruntime-cpu", "onnxruntime-cuda"))
        assert [(link.to, link.status) for link in verdict.links] == [
            ("candidate, onnxruntime-cpu", "passed"),
            ("candidate, onnxruntime-cuda", "not run"),
        ]
