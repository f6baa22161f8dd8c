"""The measurements in docs/verifying.md are those of the result files."""

import json
from pathlib import Path
from typing import Any

from documents import in_one_line

from benchmarks.corpus import FAULTS, HARMLESS, UNCOMPARABLE
from benchmarks.foreign_models import NETWORKS, NUM_WRONG
from benchmarks.verifiers import SCALES, table

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "verifying.md").read_text(encoding="utf-8")
TEXT = in_one_line(PAGE)


def result(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_bytes())
    return content


class TestVerifiers:
    ROWS = result("verifiers")["rows"]

    def test_the_table_is_that_of_the_result(self) -> None:
        assert table(result("verifiers")) in PAGE

    def test_the_result_is_of_the_whole_corpus_of_today(self) -> None:
        cases = [case.name for case in (*FAULTS, *UNCOMPARABLE, *HARMLESS)] + ["other names inside"]
        assert [(each["case"], each["logits"]) for each in self.ROWS] == [(case, f"2^{scale}") for scale in SCALES for case in cases]

    def test_every_fault_was_found_and_placed_and_nothing_harmless_was_reported(self) -> None:
        for each in self.ROWS:
            found = each["samegraph"]
            assert found["found"] is (each["kind"] != "harmless"), each["case"]
            if each["kind"] == "fault":
                assert found["layer"] == each["layer"], each["case"]


class TestCost:
    TIME, MEMORY = result("verification_cost")["time"], result("verification_cost")["memory"]

    def test_time(self) -> None:
        least, middle, most = self.TIME["ratios"]
        assert f"take {middle:.2f} x the CPU time of those three passes alone (three rounds, {least:.2f} to {most:.2f})" in TEXT
        rounds = self.TIME["seconds"]
        three = sum(seconds for each in rounds for name, seconds in each.items() if name != "verifying") / len(rounds)
        assert f"would by itself take {self.TIME['float64_seconds_if_of_all'] / three:.1f} x that" in TEXT
        assert (self.TIME["images"], most <= 1.5) == (10_000, True)

    def test_memory(self) -> None:
        few, many = self.MEMORY
        assert (few["samples"], many["samples"], few["passed"], many["passed"]) == (1_000, 100_000, True, True)
        assert abs(many["kib"] / few["kib"] - 1) < 0.001
        assert many["kib_of_hosts"] / few["kib_of_hosts"] - 1 < 0.1


class TestForeignModels:
    ROWS = result("foreign_models")["rows"]

    def ratios(self, *, passed: bool) -> list[float]:
        return [each["ratio"] for each in self.ROWS if each["passed"] is passed]

    def test_exports_pass_and_wrong_layers_do_not(self) -> None:
        assert [each["passed"] for each in self.ROWS] == [each["file"] in ("optimised", "plain") for each in self.ROWS]

    def test_they_are_all_there_and_the_wrong_layer_is_named(self) -> None:
        assert [each["network"] for each in self.ROWS] == [name for name in NETWORKS for _ in range(2 + NUM_WRONG)]
        for each in self.ROWS:
            if not each["passed"]:
                assert each["file"].removeprefix("plain, ").removesuffix(".weight twice as large") == each["layer"]

    def test_the_figures_of_the_text(self) -> None:
        right, wrong = self.ratios(passed=True), self.ratios(passed=False)
        assert (len(NETWORKS), f"all {len(right)} files" in TEXT, f"of {len(wrong)} with one convolution" in TEXT) == (8, True, True)
        assert f"({min(right):.2f} to {max(right):.2f} x it)" in TEXT
        assert f"({min(wrong):,.0f} x and more)" in TEXT
