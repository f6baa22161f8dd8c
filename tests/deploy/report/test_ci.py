"""What continuous integration reads from a verdict: JUnit, GitHub's summary and annotations.

And what changed, and the composite action.
"""

import copy
import json
import os
import re
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml
from verdicts import off_by_one, verdict_of

from deploy.report import ci
from deploy.report.changes import changes, read_verification
from deploy.report.ci import junit_xml
from deploy.verify.verdict import Place, failure_sentence
from export.errors import UsageError

ROOT = Path(__file__).parents[3]


class TestJUnit:
    def cases(self, content: bytes) -> dict[tuple[str, str], str]:
        root = ElementTree.fromstring(content)
        found = {}
        for case in root.iter("testcase"):
            kinds = [child.tag for child in case]
            found[case.attrib["classname"], case.attrib["name"]] = kinds[0] if kinds else "passed"
        assert int(root.attrib["tests"]) == len(found)
        assert int(root.attrib["failures"]) == list(found.values()).count("failure")
        assert int(root.attrib["skipped"]) == list(found.values()).count("skipped")
        return found

    def test_a_case_a_link_and_output_and_check(self) -> None:
        found = self.cases(junit_xml(verdict_of()))
        assert found["training graph -> ONNX file", "logits"] == "passed"
        assert found["ONNX file -> cuda", "outputs"] == "skipped"
        assert found["invariance of ONNX file", "alone"] == "passed"
        assert found["invariance of cuda", "alone"] == "skipped"

    def test_what_failed_failed_and_says_why(self) -> None:
        content = junit_xml(verdict_of(off_by_one), [("certificate", "a sum <&> may round \x00")])
        assert self.cases(content)["training graph -> ONNX file", "logits"] == "failure"
        messages = [each.attrib["message"] for each in ElementTree.fromstring(content).iter("failure")]
        assert "the error against float64 is max 1" in messages[0]
        assert messages[-1] == "a sum <&> may round ?"

    def test_only_the_output_that_differs_fails(self) -> None:
        verdict = verdict_of(off_by_one)
        (wrong,) = verdict.links[0].outputs
        both = replace(verdict.links[0], outputs=(replace(wrong, name="same", different_bits=0), wrong))
        found = self.cases(junit_xml(replace(verdict, links=(both, *verdict.links[1:]))))
        suite = "training graph -> ONNX file"
        assert (found[suite, "same"], found[suite, "logits"]) == ("passed", "failure")

    def test_an_output_with_other_bits_inside_its_budget_passes(self) -> None:
        verdict = verdict_of(off_by_one)
        (wrong,) = verdict.links[0].outputs
        both = replace(verdict.links[0], outputs=(replace(wrong, name="near"), wrong))
        (errors,) = [each for each in verdict.errors if each.stage == "ONNX file"]
        near = replace(errors, output="near", max=0.0, rms=0.0)
        found = self.cases(junit_xml(replace(verdict, links=(both, *verdict.links[1:]), errors=(*verdict.errors, near))))
        suite = "training graph -> ONNX file"
        assert (found[suite, "near"], found[suite, "logits"]) == ("passed", "failure")

    def test_an_interruption_is_no_pass(self) -> None:
        found = self.cases(junit_xml(replace(verdict_of(), interrupted=True)))
        assert found["samegraph", "all samples"] == "failure"


class TestGitHub:
    def test_the_summary(self) -> None:
        text = ci.summary(verdict_of())
        assert text.startswith("### samegraph: ✅ the outputs are the same\n")
        rows = [line for line in text.splitlines() if line.startswith("| training graph")]
        assert len(rows) == 1
        assert rows[0].count("|") == text.splitlines()[4].count("|") == 8
        assert "❌ the outputs are not the same" in ci.summary(verdict_of(off_by_one))
        assert "❌ the outputs are not the same" in ci.summary(verdict_of(), [("certificate", "no")])

    def test_names_from_a_model_do_not_become_markup(self) -> None:
        verdict = verdict_of(off_by_one)
        evil = replace(verdict.links[0], to="a|b](http://x) <img src=x>\nnext", reason="`x` |")
        text = ci.summary(replace(verdict, links=(evil,)))
        unescaped = re.sub(r"\\[^\w\s]", "", text)
        assert not set("<>[]`") & set(unescaped)
        assert len({line.replace("\\|", "").count("|") for line in text.splitlines() if line.startswith("|")}) == 1

    def test_the_place_is_told_wherever_the_reason_is(self) -> None:
        verdict = verdict_of(off_by_one)
        found = {"tensor": "t", "reference_tensor": "t", "operation": "Conv", "layer": "first", "reason": "", "max_abs": 1.0, "error": None}
        place = Place(**found, allowed=None, inputs=(), worst_sample=3, runs=4)  # type: ignore[arg-type]
        placed = replace(verdict, links=(replace(verdict.links[0], place=place), *verdict.links[1:]))
        words = "; it begins at Conv of first (t)"
        assert words in ci.summary(placed)
        assert next(iter(ci.annotations(placed))).endswith(words)
        assert words in junit_xml(placed).decode()
        assert f"{words}; and" in failure_sentence(placed) or failure_sentence(placed).endswith(words)

    def test_a_summary_that_is_too_long_is_cut(self) -> None:
        verdict = verdict_of(off_by_one)
        text = ci.summary(replace(verdict, links=verdict.links[:1] * 9000))
        assert len(text.encode()) <= 1024 * 1024
        assert text.endswith("too long for a summary\n")

    def test_annotations_are_ten_lines_at_most_and_the_last_says_how_many_more(self) -> None:
        verdict = verdict_of(off_by_one)
        link = replace(verdict.links[0], reason="50 %\nof it", to="a: b, c")
        lines = list(ci.annotations(replace(verdict, links=(link,) * 12, invariance=())))
        assert lines[0] == "::error title=training graph → a%3A b%2C c::50 %25%0Aof it"
        assert (len(lines), lines[-1]) == (10, "::error title=samegraph::3 more failed, see the summary")
        assert list(ci.annotations(verdict_of())) == []


class TestAgainst:
    def content(self) -> dict[str, Any]:
        return json.loads(json.dumps(verdict_of().to_json()))

    def test_nothing_has_changed(self) -> None:
        assert changes(self.content(), self.content()) == []

    def test_every_change_is_told(self) -> None:
        old, new = self.content(), self.content()
        new["verdict"] = "fail"
        new["files"]["model.onnx"] = "cd" * 32
        new["samples"]["count"] = 13
        new["links"][0] |= {"status": "failed", "max_ulp": 7}
        del new["links"][1]
        new["invariance"][0]["status"] = "failed"
        new["environment"]["packages"]["torch"] = "9.9"
        told = changes(old, new)
        assert told[0] == "verdict: pass -> fail"
        assert f"file model.onnx: {'ab' * 32} -> {'cd' * 32}" in told
        assert "samples: count: 12 -> 13" in told
        assert "training graph -> ONNX file: status: passed -> failed" in told
        assert "training graph -> ONNX file: max_ulp: 0 -> 7" in told
        assert "ONNX file -> cuda: no longer there" in told
        assert "rerun of training graph: status: passed -> failed" in told
        assert any(re.fullmatch(r"environment packages: torch: .* -> 9\.9", line) for line in told)
        assert "ONNX file -> cuda: new, not run" in changes(new, old)

    @pytest.mark.parametrize(
        ("text", "found"),
        [
            (None, "is not a file"),
            ("{", "is not JSON"),
            ("[" * 10**5, "is not JSON"),
            ("[]", "has no list of links"),
            ('{"links": 3}', "has no list of links"),
            ('{"links": [1], "invariance": []}', "has no list of links"),
        ],
    )
    def test_one_line_for_what_is_no_verification(self, tmp_path: Path, text: str | None, found: str) -> None:
        path = tmp_path / "old.json"
        if text is not None:
            path.write_text(text)
        with pytest.raises(UsageError, match=found):
            read_verification(path)

    def test_it_is_not_changed_by_looking(self) -> None:
        content = self.content()
        before = copy.deepcopy(content)
        changes(content, content)
        assert content == before


class TestAction:
    """The steps of action.yml, as far as they can run here.

    The script of the last step runs with a `pipeline` that prints its arguments.
    """

    ACTION = yaml.safe_load((ROOT / "action.yml").read_text())

    def run(self, tmp_path: Path, **inputs: str) -> list[str]:
        (tmp_path / "pipeline").write_text('#!/bin/sh\nfor each in "$@"; do echo "$each"; done\n')
        (tmp_path / "pipeline").chmod(0o755)
        step = self.ACTION["runs"]["steps"][-1]
        values = {name: text["default"] for name, text in self.ACTION["inputs"].items()} | inputs
        variables = {key: re.sub(r"\$\{\{ inputs\.([\w-]+) \}\}", lambda match: values[match[1]], text) for key, text in step["env"].items()}
        environment = {**os.environ, **variables, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
        command = ["bash", "-e", "-o", "pipefail", "-c", step["run"]]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, cwd=tmp_path)
        return done.stdout.splitlines()

    def test_a_pair(self, tmp_path: Path) -> None:
        asked = self.run(tmp_path, reference="a b.pt2", candidate="c.onnx", samples="x.npz", arguments="--map x=* --max-ulp 3")
        assert asked == [
            *("verify", "--report", "samegraph-report", "--junit", "samegraph-report/junit.xml", "--map", "x=*", "--max-ulp", "3"),
            *("--samples", "x.npz", "--reference", "a b.pt2", "--candidate", "c.onnx"),
        ]

    def test_nothing_of_it_is_looked_for_in_the_workspace(self) -> None:
        """setup-python fails if no file of the workspace matches its cache's key.

        An action's own files are elsewhere.
        """
        setup = next(step for step in self.ACTION["runs"]["steps"] if step.get("uses", "").startswith("actions/setup-python@"))
        assert setup["with"].keys() == {"python-version"}

    def test_a_bundle(self, tmp_path: Path) -> None:
        assert self.run(tmp_path, bundle="runs/b", report="there")[-1] == "runs/b"

    def test_no_text_of_an_input_is_run(self, tmp_path: Path) -> None:
        asked = self.run(tmp_path, bundle="$(touch evil)", arguments="`touch evil` ; touch evil")
        assert "$(touch evil)" in asked
        assert not (tmp_path / "evil").exists()
        for step in self.ACTION["runs"]["steps"]:
            assert "${{" not in step.get("run", "")
