"""`pipeline verify` as users type it: bundles and pairs, output files, and one line per mistake."""

import errno
import itertools
import json
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import onnx
import pytest
from commands import Done, pipeline
from in_process import HereHost
from odd_files import node, write
from onnx import TensorProto
from onnx_files import pixels, random_weights, write_onnx

from deploy.compare.bits import Arrays
from deploy.compare.samples import SampleHash

Run = Callable[..., Done]
WEIGHTS = random_weights()
CHECKS = ("alone", "batches", "partial", "duplicated")


@pytest.fixture(autouse=True)
def in_this_process(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip the separate processes for files, except in tests about them.

    Most of these tests are about options and output.
    """
    if "hosted" not in request.keywords:
        monkeypatch.setattr("deploy.verify.sides.HostProcess", HereHost)


@pytest.fixture
def verify(capfd: pytest.CaptureFixture[str]) -> Run:
    return lambda *arguments: pipeline(capfd, "verify", *arguments)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, another one, and samples."""
    folder = tmp_path_factory.mktemp("files")
    write_onnx(folder / "model.onnx", WEIGHTS)
    write_onnx(folder / "wrong.onnx", WEIGHTS.changed(last_bias=WEIGHTS.last_bias + np.float32(0.01)))
    np.savez(folder / "samples.npz", image=pixels(12))
    return folder


def typed(files: Path, candidate: str = "model.onnx", samples: str = "samples.npz") -> list[object]:
    return ["--reference", files / "model.onnx", "--candidate", files / candidate, "--samples", files / samples]


@pytest.mark.hosted
def test_a_pair_that_is_the_same(verify: Run, files: Path, tmp_path: Path) -> None:
    done = verify(*typed(files), "--report", tmp_path / "there")
    assert (done.code, done.err) == (0, "")
    assert done.out.splitlines()[1] == "the outputs are the same, on 12 samples: 12 samples from samples.npz"
    ends = [f"reference: {files / 'model.onnx'}", f"candidate: {files / 'model.onnx'}", f"report: {tmp_path / 'there' / 'report.html'}"]
    assert done.out.splitlines()[2:] == ends
    assert json.loads((tmp_path / "there" / "verification.json").read_text())["verdict"] == "pass"
    assert "model.onnx" in (tmp_path / "there" / "report.html").read_text()


def test_every_check_that_failed_has_its_line(verify: Run, files: Path, tmp_path: Path) -> None:
    """A network that reads its whole batch."""
    nodes = [node("ReduceMean", ["x"], "mean", keepdims=0), node("Add", ["x", "mean"], "y")]
    path = write(tmp_path / "batch.onnx", nodes, [("y", TensorProto.FLOAT, ["N", 4])])
    done = verify("--reference", path, "--candidate", path, "--samples", "9")
    assert done.code == 3
    failed = [line for line in done.out.splitlines() if "FAILED" in line]
    assert [line.partition(": ")[0] for line in failed] == [f"{check} of {side}" for side in ("reference", "candidate") for check in CHECKS]
    assert "the error against float64 is" in failed[0]


@pytest.mark.hosted
def test_names_in_a_file_are_told_in_one_line_without_what_moves_a_terminal(verify: Run, tmp_path: Path) -> None:
    name = "y\n::error::\x1b[31m\u202e"
    path = write(tmp_path / "odd.onnx", [node("Mul", ["x", "zero"], name)], [(name, TensorProto.FLOAT, ["N", 4])], constants={"zero": np.float32(0)})
    done = verify("--reference", path, "--candidate", path, "--samples", "9")
    assert done.code == 0
    assert [line.partition(":")[0] for line in done.out.splitlines()][:2] == ["reference -> candidate", "note"]
    assert not set("\x1b\u202e") & set(done.out)


@pytest.mark.hosted
def test_a_name_that_is_no_text(verify: Run, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
    path = tmp_path / os.fsdecode(b"\xff.onnx")
    path.write_bytes((files / "wrong.onnx").read_bytes())
    asked = ("--reference", path, "--candidate", files / "model.onnx", "--samples", "9")
    done = verify(*asked, "--report", tmp_path / "there", "--junit", tmp_path / "junit.xml")
    assert (done.code, done.out.count("reference -> candidate: FAILED")) == (3, 1)
    assert any("\udcff" in name for name in json.loads((tmp_path / "there" / "verification.json").read_bytes())["files"])


def test_a_full_disk_does_not_swallow_the_verdict(verify: Run, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr("deploy.report.verification.write_file", full)
    done = verify(*typed(files), "--report", tmp_path / "there")
    assert (done.code, done.out.splitlines()[1]) == (2, "the outputs are the same, on 12 samples: 12 samples from samples.npz")
    assert done.error.startswith(f"error: No space left on device: {tmp_path / 'there' / 'verification.json'}; free some space")
    wrong = verify(*typed(files, "wrong.onnx"), "--report", tmp_path / "there")
    assert wrong.code == 3
    assert "nor could the report be written: [Errno 28] No space left on device" in wrong.error


def test_a_report_for_a_device(verify: Run, files: Path) -> None:
    """A file is in its place."""
    done = verify(*typed(files), "--junit", "/dev/null")
    assert (done.code, "--junit /dev/null exists but is not a regular file" in done.error) == (2, True)
    assert not Path("/dev/null").is_file()


def test_samples_of_an_empty_name(verify: Run, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The text of a variable that was not set is not taken for whatever is in this folder."""
    monkeypatch.chdir(files)
    done = verify(*typed(files)[:4], "--samples", "")
    assert (done.code, "--samples: '' is neither a file, nor a folder, nor a number" in done.error) == (2, True)


def test_a_step_summary_that_cannot_be_written(verify: Run, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "not" / "there"))
    done = verify(*typed(files))
    assert (done.code, done.err.startswith("no step summary: ")) == (0, True)


def test_a_runtime_asked_for_twice_is_one(verify: Run, files: Path) -> None:
    twice = ("--runtime", "onnxruntime-cpu", "--runtime", "onnxruntime-cpu")
    assert verify(*typed(files), *twice).out.startswith("reference -> candidate: passed")


def test_a_size_that_is_not_free(verify: Run, files: Path) -> None:
    asked = ["--reference", files / "model.onnx", "--candidate", files / "model.onnx", "--size", "length=3"]
    done = verify(*asked, "--samples", "3")
    assert (done.code, "--size length=3: the inputs have no such free size, only none; drop it" in done.error) == (2, True)


def test_a_pair_that_is_not(verify: Run, files: Path) -> None:
    done = verify(*typed(files, "wrong.onnx"))
    assert done.code == 3
    assert "error: reference -> candidate failed: the error against float64 is max 0.01" in done.error
    assert "the outputs are NOT the same" in done.out
    loose = verify(*typed(files, "wrong.onnx"), "--atol", "0.02")
    assert loose.code == 0
    assert "passed, within atol 0.02, rtol 0, chosen by a human" in loose.out


def test_where_the_report_cannot_be_is_said_before_anything_is_compared(verify: Run, files: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").touch()
    for place in (["--report", tmp_path / "taken" / "there"], ["--junit", tmp_path / "taken" / "junit.xml"]):
        done = verify("--reference", "none.onnx", "--candidate", "none.onnx", *place)
        assert (done.code, str(tmp_path / "taken") in done.error) == (2, True), done.error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give a BUNDLE, or both --reference and --candidate, or --certificate FILE.onnx"),
        (["--reference", "a.onnx"], "give a BUNDLE, or both --reference and --candidate, or --certificate FILE.onnx"),
        (["b", "--reference", "a.onnx"], "give a BUNDLE, or both --reference and --candidate, or --certificate FILE.onnx"),
        (["b", "--max-ulp", "3"], "--max-ulp does not go with a BUNDLE"),
        (["b", "--map", "a=b"], "--map does not go with a BUNDLE"),
        (["--reference", "a.onnx", "--candidate", "b.onnx", "--network", "m:f"], "--network does not go with --reference and --candidate"),
        (["--certificate", "a.onnx", "--samples", "3"], "--samples does not go with --certificate"),
        (["--reference", "a.onnx", "--candidate", "b.onnx", "--map", "ab"], "--map 'ab' is not of the form REFERENCE=CANDIDATE"),
        (["--reference", "a.onnx", "--candidate", "b.onnx", "--size", "n=0"], "--size n=0 is not a size; give a whole number of at least 1"),
        (["--reference", "a.onnx", "--candidate", "b.onnx", "--map", "a=c", "--map", "b=c"], "--map names 'c' twice on one side"),
        (["--reference", "a.onnx", "--candidate", "b.onnx", "--map", "a=c", "--map", "a=d"], "--map names 'a' twice on one side"),
        (
            ["--reference", "a.onnx", "--candidate", "b.pt2", "--runtime", "openvino-cpu"],
            "the runtime of an ONNX candidate, and b.pt2 is not one; drop it",
        ),
        (
            ["--reference", "a.onnx", "--candidate", "b.onnx", "--precision", "float16", "--atol", "1"],
            "--precision scales the derived budget",
        ),
        (["--reference", "a.onnx", "--candidate", "b.onnx", "--atol", "-1"], "Invalid value for '--atol'"),
        (["--reference", "a.onnx", "--candidate", "b.onnx"], "a.onnx does not exist; give a model (.onnx, .pt2, .plan, .engine), a bundle, or"),
    ],
)
def test_a_mistake_is_one_line_and_exit_2(verify: Run, arguments: list[str], message: str) -> None:
    done = verify(*arguments)
    assert done.code == 2
    assert message in done.error


class TestBundle:
    def test_on_samples_of_the_user(self, verify: Run, bundle: Path, tmp_path: Path) -> None:
        np.savez(tmp_path / "images.npz", image=np.zeros((7, 1, 8, 8), np.uint8))
        done = verify(bundle, "--samples", tmp_path / "images.npz")
        assert (done.code, "on 26 samples: 7 samples from images.npz, 19 hostile images" in done.out) == (0, True)
        assert "30 random samples" in verify(bundle, "--samples", "30").out
        wrong = verify(bundle, "--samples", tmp_path / "none.npz")
        assert (wrong.code, "is neither a file, nor a folder, nor a number" in wrong.error) == (2, True)

    def test_one_link_alone(self, verify: Run, bundle: Path) -> None:
        done = verify(bundle, "--only", "folded graph -> ONNX file")
        assert done.code == 0
        assert [line.partition(":")[0] for line in done.out.splitlines()][:-2] == ["folded graph -> ONNX file"]
        unknown = verify(bundle, "--only", "folded graf -> ONNX file")
        assert (unknown.code, "did you mean 'folded graph -> ONNX file'?" in unknown.error) == (2, True)
        vague = verify(bundle, "--only", "onnx")
        assert (vague.code, "links; choose one of '" in vague.error) == (2, True)

    def test_bits_may_be_required(self, verify: Run, bundle: Path) -> None:
        """Every link and every check: a float graph has other bits in other batches; only an exact
        one does not."""
        done = verify(bundle, "--only", "evaluation graph -> folded graph", "--require", "bitwise")
        assert done.code == 3
        assert "evaluation graph -> folded graph: passed, the same bits" in done.out
        assert "of evaluation graph failed: required bitwise" in done.error
        assert verify(bundle, "--require", "bitwise").code == 0  # for an exact bundle this applies to the exact chain
        float_link = verify(bundle, "--only", "folded graph -> ONNX file", "--require", "bitwise")
        assert float_link.code == 3
        assert "folded graph -> ONNX file failed: required bitwise" in float_link.error


def test_what_is_written_for_others(verify: Run, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    summary = tmp_path / "summary.md"
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    link = ("--only", "folded graph -> ONNX file")
    first = verify(bundle, *link, "--report", tmp_path / "there", "--junit", tmp_path / "new" / "junit.xml")
    assert (first.code, "::error" in first.err) == (0, False)
    assert ElementTree.parse(tmp_path / "new" / "junit.xml").getroot().attrib["failures"] == "0"
    assert summary.read_text().startswith("### samegraph: ✅ the outputs are the same")
    old = tmp_path / "there" / "verification.json"
    again = verify(bundle, *link, "--against", old)
    assert again.out.splitlines()[-1] == f"since {old}: nothing has changed"
    changed = verify(bundle, *link, "--against", old, "--require", "bitwise")
    assert changed.code == 3
    assert "  verdict: pass -> fail" in changed.out.splitlines()
    assert "  folded graph -> ONNX file: required: budget -> bitwise" in changed.out.splitlines()
    assert "::error title=folded graph → ONNX file::required bitwise, but" in changed.err
    assert summary.read_text().count("### samegraph: ") == 3
    missing = verify(bundle, *link, "--against", tmp_path / "none.json")
    assert (missing.code, "is not a file; give the verification.json of an earlier run" in missing.error) == (2, True)


def test_the_files_of_the_examples_are_models(files: Path) -> None:
    onnx.checker.check_model(onnx.load(files / "wrong.onnx"), full_check=True)


@pytest.mark.hosted
def test_ctrl_c_leaves_a_report_of_what_was_compared(verify: Run, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The interruption comes some time after the third batch, while the processes of both files
    work."""
    update, batches = SampleHash.update, itertools.count(1)

    def with_ctrl_c_to_come(samples: SampleHash, batch: Arrays) -> None:
        update(samples, batch)
        if next(batches) == 3:
            threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()

    monkeypatch.setattr(SampleHash, "update", with_ctrl_c_to_come)
    done = verify(*typed(files)[:4], "--samples", "100000000", "--report", tmp_path, "--json")
    assert (done.code, "Traceback" in done.err) == (130, False), done.err
    found = json.loads(done.out)
    assert found["error"]["kind"] == "Interrupted"
    written = json.loads((tmp_path / "verification.json").read_text())
    assert written == found["verification"]
    assert (written["verdict"], written["interrupted"]) == ("incomplete", True)
    (link,) = written["links"]
    assert (link["status"], link["samples"]) == ("passed", written["samples"]["count"])
    assert 0 < link["samples"] < 100_000_000
    page = (tmp_path / "report.html").read_text()
    assert "✕ INCOMPLETE" in page
    assert "some samples were not compared" in page
