"""`pipeline reproduce` and `pipeline compare` as commands: output, exit codes and refusals."""

import json
import signal
from pathlib import Path

import pytest
from commands import Done, pipeline
from small_table import small_table

from pipeline.cli.console import Console
from pipeline.reproduction.papers import TABLES

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TABLES, "small-table", small_table())


def test_the_list_says_what_each_table_needs(capfd: Capture) -> None:
    done = pipeline(capfd, "reproduce", "--list")
    assert done.code == 0
    lines = {line.split()[0]: line for line in done.out.splitlines()[1:]}
    assert list(lines) == list(TABLES)
    assert lines["czmig-table1"].split()[1:5] == ["CIFAR-10", "200", "11", "8"]
    assert lines["mimicnorm-table2"].split()[1:5] == ["CIFAR-100", "10", "28", "1"]
    assert "90, 120" in lines["gaur-table6"]


def test_a_table_is_run_and_its_runs_are_compared(small: None, tmp_path: Path, capfd: Capture) -> None:
    out = tmp_path / "out"
    done = pipeline(capfd, "reproduce", "small-table", "--rows", "nonorm*, batchnorm-0.1", "--seeds", 1, "--epochs", 1, "--out", out)
    assert done.code == 0, done.err
    assert done.out.startswith("# A small table, 2 rows of 3 (not a reproduction: shortened to 1 of 2 epochs; 1 of 2 seeds)")
    assert f"written: {out / 'accuracy.png'}" in done.out
    compared = pipeline(capfd, "compare", *sorted(out.glob("runs/*/*")), "--out", tmp_path / "compared")
    assert compared.code == 0, compared.err
    assert "| small | nonorm |" in compared.out
    assert (tmp_path / "compared" / "accuracy.svg").is_file()


def test_another_table_is_not_written_over(small: None, tmp_path: Path, capfd: Capture) -> None:
    (tmp_path / "table.json").write_text('{"table": "czmig-table1"}')
    done = pipeline(capfd, "reproduce", "small-table", "--seeds", 1, "--epochs", 1, "--out", tmp_path)
    assert (done.code, done.error) == (2, f"error: {tmp_path} holds the table czmig-table1, expected small-table; choose another --out")
    assert [each.name for each in tmp_path.iterdir()] == ["table.json"]


def test_ctrl_c_is_130_and_keeps_what_was_done(small: None, tmp_path: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    say = Console.say

    def interrupted_at_the_second_run(console: Console, text: str) -> None:
        say(console, text)
        if text.startswith("run 2 of "):
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Console, "say", interrupted_at_the_second_run)
    done = pipeline(capfd, "reproduce", "small-table", "--rows", "nonorm*,czmig*", "--seeds", 1, "--epochs", 1, "--out", tmp_path)
    assert (done.code, done.error) == (130, "error: interrupted; what was done is kept")
    assert "1 of 2 runs finished" in done.out
    facts = json.loads((tmp_path / "table.json").read_bytes())
    assert facts["not_a_reproduction_because"] == ["shortened to 1 of 2 epochs", "1 of 2 seeds", "1 of 2 runs finished"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["reproduce"], "give a table, or --list to see the tables"),
        (["reproduce", "czmig-tabel1"], "no table 'czmig-tabel1', did you mean czmig-table1?"),
        (["reproduce", "zzz"], "no table 'zzz', expected one of czmig-table1, mimicnorm-table1, "),
        (["reproduce", "small-table", "--rows", "x"], "small-table has no row 'x', expected one of batchnorm-0.1, czmig-0.2, nonorm-1000000.0"),
        (["reproduce", "small-table", "--epochs", "0"], "Invalid value for '--epochs': 0 is not in the range x>=1."),
        (["reproduce", "small-table", "--epochs", "3"], "--epochs 3 is more than the 2 epochs of small-table; it only shortens"),
        (["reproduce", "small-table", "--seeds", "0"], "Invalid value for '--seeds': 0 is not in the range x>=1."),
        (["reproduce", "small-table", "--set", "training.epoch=3"], "row batchnorm-0.1: --set training.epoch=3: training.epoch: unknown key"),
        (
            ["reproduce", "czmig-table1", "--rows", "batchnorm", "--data", "nowhere"],
            "no cifar10 at nowhere/cifar-10-batches-py; set data.download: true",
        ),
        (["reproduce", "gaur-table1", "--data", "nowhere"], "data.root: there is no folder nowhere; wanted: ROOT/train/CLASS/*.png"),
        (["compare"], "Missing argument 'RUN...'."),
        (["compare", "nowhere"], "nowhere holds no run: there is no nowhere/config.yaml; give the folders that pipeline train wrote"),
    ],
    ids=lambda each: " ".join(each) if isinstance(each, list) else "",
)
def test_wrong_use_is_one_line_and_exit_2(
    small: None, arguments: list[str], message: str, tmp_path: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done: Done = pipeline(capfd, *arguments)
    assert done.code == 2
    assert done.error.startswith(f"error: {message}")
    assert not list(tmp_path.rglob("metrics.jsonl"))


def test_with_json_there_is_the_table_and_nothing_else(small: None, tmp_path: Path, capfd: Capture) -> None:
    listed = json.loads(pipeline(capfd, "reproduce", "--list", "--json").out)
    run = json.loads(pipeline(capfd, "reproduce", "small-table", "--rows", "nonorm*", "--seeds", 1, "--out", tmp_path, "--json").out)
    assert [each["table"] for each in listed["tables"]] == list(TABLES)
    assert (run["table"], run["rows"][0]["runs_diverged"]) == ("small-table", 1)
