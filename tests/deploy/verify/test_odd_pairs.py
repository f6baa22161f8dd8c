"""Pairs with odd inputs and outputs, and pairs that cannot be compared at all.

Several outputs of several kinds, whole numbers, single values, NaN and infinity.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from in_process import HereHost
from odd_files import WEIGHT, End, Ends, X, node, scores_and_class, write
from onnx import TensorProto

from deploy.compare.tolerance import Tolerance
from deploy.sandbox.process import Limits
from deploy.verify.pair import verify_pair
from deploy.verify.request import PairRequest
from deploy.verify.verdict import LinkVerdict, Verdict, failure_sentence, weak_outputs, weakness
from export.errors import DamagedError, UsageError

ROWS = np.random.default_rng(1).normal(size=(9, 4)).astype(np.float32)


@pytest.fixture(autouse=True)
def in_this_process(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "hosted" not in request.keywords:
        monkeypatch.setattr("deploy.verify.sides.HostProcess", HereHost)


@pytest.fixture
def samples(tmp_path: Path) -> str:
    np.savez(tmp_path / "x.npz", x=ROWS)
    return str(tmp_path / "x.npz")


def compared(reference: Path, candidate: Path, samples: str, **options: object) -> Verdict:
    return verify_pair(PairRequest(reference=reference, candidate=candidate, samples=samples, **options))  # type: ignore[arg-type]


def only_link(verdict: Verdict) -> LinkVerdict:
    (link,) = verdict.links
    return link


class TestSeveralOutputs:
    def test_the_same(self, tmp_path: Path, samples: str) -> None:
        path = scores_and_class(tmp_path / "a.onnx")
        verdict = compared(path, path, samples)
        assert verdict.passed, failure_sentence(verdict)
        assert [(output.name, output.dtype) for output in only_link(verdict).outputs] == [
            ("scores", "float32"),
            ("class", "int64"),
            ("large", "float32"),
            ("above", "bool"),
        ]
        assert {each.output for each in verdict.errors} == {"scores", "class", "large", "above"}

    def test_each_has_its_own_budget(self, tmp_path: Path, samples: str) -> None:
        """An error that is nothing among numbers of a million is a fault among scores."""
        reference, wrong = scores_and_class(tmp_path / "a.onnx"), scores_and_class(tmp_path / "b.onnx", moved=1e-4)
        link = only_link(compared(reference, wrong, samples))
        assert (link.status, link.reason.partition(" is max 0.0001")[0]) == ("failed", "scores: the error against float64")
        assert link.place is not None
        assert (link.place.tensor, link.place.operation, link.place.behind) == ("scores", "Add", False)

    def test_another_class_is_found_and_placed_whatever_comes_behind_it(self, tmp_path: Path, samples: str) -> None:
        reference, wrong = scores_and_class(tmp_path / "a.onnx"), scores_and_class(tmp_path / "b.onnx", largest=False)
        link = only_link(compared(reference, wrong, samples))
        assert (link.status, link.place.operation if link.place else None) == ("failed", "ArgMin")
        assert link.reason.startswith("class: the error against float64 is max 2")
        assert "the budget is max 0, rms 0" in link.reason


def test_what_differs_behind_the_last_common_tensor_is_said_to(tmp_path: Path, samples: str) -> None:
    reference = write(tmp_path / "a.onnx", [node("Neg", ["x"], "minus"), node("Abs", ["minus"], "y")], [("y", TensorProto.FLOAT, ["N", 4])])
    other = write(tmp_path / "b.onnx", [node("Neg", ["x"], "minus"), node("Neg", ["minus"], "z")], [("z", TensorProto.FLOAT, ["N", 4])])
    verdict = compared(reference, other, samples, names={"y": "z"})
    assert "; it begins behind Neg (minus)" in failure_sentence(verdict)


class TestSingleValues:
    def test_an_input_without_axes(self, tmp_path: Path) -> None:
        rate: End = ("rate", TensorProto.FLOAT, [])
        path = write(tmp_path / "a.onnx", [node("Mul", ["x", "rate"], "y")], [("y", TensorProto.FLOAT, ["N", 4])], (X, rate))
        np.savez(tmp_path / "x.npz", x=ROWS, rate=np.float32(3))
        verdict = compared(path, path, str(tmp_path / "x.npz"))
        assert (verdict.passed, verdict.samples.count) == (True, 9)
        assert compared(path, path, "5").passed

    def test_nothing_but_single_values(self, tmp_path: Path) -> None:
        ends = [(name, TensorProto.FLOAT, list[str | int]()) for name in ("x", "y")]
        path = write(tmp_path / "a.onnx", [node("Neg", ["x"], "y")], ends[1:], ends[:1])
        assert compared(path, path, "3").passed

    def test_an_output_without_axes(self, tmp_path: Path, samples: str) -> None:
        path = write(tmp_path / "a.onnx", [node("ReduceSum", ["x"], "y", keepdims=0)], [("y", TensorProto.FLOAT, [])])
        verdict = compared(path, path, samples)
        assert verdict.passed
        assert {check.status for check in verdict.invariance if check.check == "alone"} == {"not run"}


class TestNanAndInfinity:
    def logarithm(self, path: Path) -> Path:
        return write(path, [node("Log", ["x"], "y")], [("y", TensorProto.FLOAT, ["N", 4])])

    def test_infinity_that_the_function_has_is_an_answer(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "x.npz", x=np.array([[0, 1, 2, 3]], np.float32))
        path = self.logarithm(tmp_path / "a.onnx")
        assert compared(path, path, str(tmp_path / "x.npz")).passed
        assert compared(path, path, str(tmp_path / "x.npz"), bitwise=True).passed
        assert compared(path, path, str(tmp_path / "x.npz"), tolerance=Tolerance(atol=0)).passed

    def test_nan_on_both_sides_is_none(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "x.npz", x=np.array([[-1, 1, 2, 3]], np.float32))
        path = self.logarithm(tmp_path / "a.onnx")
        verdict = compared(path, path, str(tmp_path / "x.npz"))
        assert only_link(verdict).reason == "reference: 1 output values are NaN or infinite, in float64 too: such an answer says nothing"
        assert (
            only_link(compared(path, path, str(tmp_path / "x.npz"), bitwise=True)).reason
            == "1 output values are NaN or infinite: such an answer says nothing"
        )

    def test_minus_zero_is_another_number_only_where_bits_are_required(self, tmp_path: Path, samples: str) -> None:
        y = [("y", TensorProto.FLOAT, list[str | int](["N", 4]))]
        zero = {"zero": np.float32(0)}
        one = write(tmp_path / "a.onnx", [node("Mul", ["x", "zero"], "y")], y, constants=zero)
        other = write(tmp_path / "b.onnx", [node("Abs", ["x"], "size"), node("Mul", ["size", "zero"], "y")], y, constants=zero)
        assert compared(one, other, samples).passed
        strict = only_link(compared(one, other, samples, bitwise=True))
        assert (strict.status, strict.max_ulp, strict.max_abs) == ("failed", 1, 0.0)


class TestDtypes:
    def test_bfloat16_in_and_out(self, tmp_path: Path) -> None:
        ends = [(name, TensorProto.BFLOAT16, list[str | int](["N", 4])) for name in ("x", "y")]
        nodes = [node("Cast", ["x"], "wide", to=1), node("Neg", ["wide"], "less"), node("Cast", ["less"], "y", to=16)]
        path = write(tmp_path / "a.onnx", nodes, ends[1:], ends[:1])
        verdict = compared(path, path, "9", bitwise=True)
        assert verdict.passed, failure_sentence(verdict)
        assert only_link(verdict).outputs[0].dtype == "bfloat16"

    def test_float64_has_no_budget_and_may_be_the_same_bits(self, tmp_path: Path) -> None:
        ends = [("x", TensorProto.DOUBLE, list[str | int](["N", 4])), ("y", TensorProto.DOUBLE, list[str | int](["N", 3]))]
        path = write(tmp_path / "a.onnx", [node("MatMul", ["x", "w"], "y")], ends[1:], ends[:1], {"w": WEIGHT.astype(np.float64)})
        assert compared(path, path, "9", tolerance=Tolerance(max_ulp=8)).passed
        with pytest.raises(UsageError, match="has no evaluation in float64 to derive a budget from; state what may differ"):
            compared(path, path, "9")


class TestOneLine:
    def test_texts(self, tmp_path: Path, samples: str) -> None:
        path = write(tmp_path / "a.onnx", [node("Cast", ["x"], "s", to=TensorProto.STRING)], [("s", TensorProto.STRING, ["N", 4])])
        with pytest.raises(UsageError, match=r"s holds texts, expected one of bfloat16, bool, .*; export the model without it"):
            compared(path, path, samples)

    def test_two_outputs_of_one_name(self, tmp_path: Path, samples: str) -> None:
        path = write(tmp_path / "a.onnx", [node("Neg", ["x"], "y")], [("y", TensorProto.FLOAT, ["N", 4])])
        model = onnx.load(path)
        model.graph.output.append(model.graph.output[0])
        onnx.save(model, path)
        with pytest.raises(DamagedError, match="has two outputs named 'y'"):
            compared(path, path, samples)

    def test_a_model_without_input(self, tmp_path: Path, samples: str) -> None:
        path = write(tmp_path / "a.onnx", [node("Identity", ["w"], "y")], [("y", TensorProto.FLOAT, [4, 3])], (), {"w": WEIGHT})
        with pytest.raises(UsageError, match=r"a\.onnx takes no input, so no sample reaches it"):
            compared(path, path, samples)

    def test_an_output_without_values_is_no_pass(self, tmp_path: Path, samples: str) -> None:
        constants = {"from": np.array([0]), "axis": np.array([1])}
        nodes = [node("Slice", ["x", "from", "from", "axis"], "y")]
        path = write(tmp_path / "a.onnx", nodes, [("y", TensorProto.FLOAT, ["N", 0])], constants=constants)
        assert only_link(compared(path, path, samples)).reason == "y: shape (9, 0) holds no value"

    def test_what_is_there_and_no_file(self, samples: str) -> None:
        with pytest.raises(UsageError, match="/dev/null is not a file; give a model"):
            compared(Path("/dev/null"), Path("/dev/null"), samples)

    @pytest.mark.hosted
    def test_hunger_is_a_failure_of_its_side(self, tmp_path: Path, samples: str) -> None:
        nodes = [node("Expand", ["x", "sizes"], "large"), node("ReduceSum", ["large", "axes"], "y", keepdims=0)]
        constants = {"sizes": np.array([100_000, 1000, 1, 1]), "axes": np.array([0, 1])}
        path = write(tmp_path / "a.onnx", nodes, [("y", TensorProto.FLOAT, ["N", 4])], constants=constants)
        link = only_link(compared(path, path, samples, bitwise=True, limits=Limits(gibibytes=2)))
        assert (link.status, link.observed) == ("failed", None)
        assert "reference raised HostError: it needs more memory than the 2 GiB it may have; allow more with --memory-limit" in link.reason

    @pytest.mark.hosted
    @pytest.mark.slow
    def test_a_loop_without_end_is_late_and_no_crash_of_ours(self, tmp_path: Path, samples: str) -> None:
        path = endless(tmp_path / "a.onnx")
        with pytest.raises(UsageError, match=r"the float64 evaluation of a\.onnx failed \(no answer within 10 s; allow more with --time-limit\)"):
            compared(path, path, samples, limits=Limits(seconds=10))


def endless(path: Path) -> Path:
    """A loop whose condition stays true."""
    value = onnx.helper.make_tensor_value_info
    ends = [value("i", TensorProto.INT64, []), value("on", TensorProto.BOOL, []), value("v", TensorProto.FLOAT, ["N", 4])]
    outs = [value("still_on", TensorProto.BOOL, []), value("same", TensorProto.FLOAT, ["N", 4])]
    body = onnx.helper.make_graph([node("Identity", ["on"], "still_on"), node("Identity", ["v"], "same")], "body", ends, outs)
    return write(path, [node("Loop", ["", "true", "x"], "y", body=body)], [("y", TensorProto.FLOAT, ["N", 4])], constants={"true": np.bool_(True)})


class TestOutputsThatSayLittle:
    """A fault in front of what makes an output constant changes nothing that is compared.

    So the verdict notes that the samples make no difference.
    """

    Y: Ends = (("y", TensorProto.FLOAT, ["N", 4]),)

    def said(self, path: Path, samples: str, **options: object) -> dict[str, float]:
        verdict = compared(path, path, samples, **options)
        assert verdict.passed
        return weak_outputs(verdict)

    def nearly(self, path: Path, size: float) -> Path:
        """One, plus the sample times `size`."""
        constants = {"size": np.float32(size), "one": np.float32(1)}
        return write(path, [node("Mul", ["x", "size"], "less"), node("Add", ["less", "one"], "y")], self.Y, constants=constants)

    def test_they_are_told(self, tmp_path: Path, samples: str) -> None:
        assert self.said(self.nearly(tmp_path / "a.onnx", 0.0), samples) == {"y": 0.0}
        assert self.said(self.nearly(tmp_path / "a.onnx", 0.0), samples, bitwise=True) == {"y": 0.0}
        (spread,) = self.said(self.nearly(tmp_path / "a.onnx", 1e-7), samples).values()
        assert 0 < spread < 1e-6
        assert weakness("y", spread).startswith("y hardly depends on the samples (it varies by ")

    def test_each_by_its_own_budget(self, tmp_path: Path, samples: str) -> None:
        """Not judged by the budget of the output that uses most of its own: a million here."""
        verdict = compared(scores_and_class(tmp_path / "a.onnx"), scores_and_class(tmp_path / "a.onnx"), samples)
        large = next(each.budget for each in verdict.errors if (each.stage, each.output) == ("candidate", "large"))
        assert large is not None
        widest = replace(only_link(verdict), budget=replace(large, max=10 * large.max))
        assert weak_outputs(replace(verdict, links=(widest,))) == {}

    def test_others_are_not(self, tmp_path: Path, samples: str) -> None:
        assert self.said(self.nearly(tmp_path / "a.onnx", 1e-3), samples) == {}
        np.savez(tmp_path / "one.npz", x=ROWS[:1])
        assert self.said(self.nearly(tmp_path / "a.onnx", 0.0), str(tmp_path / "one.npz")) == {}
