"""The shell around the commands, in real processes: imports, exit codes and output streams."""

import importlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import click
import pytest

from pipeline.cli import COMMANDS, group
from pipeline.cli.options import run_folder

ROOT = Path(__file__).parents[3]
SNAPSHOT = Path(__file__).with_name("commands.txt")


def pipeline(*arguments: str) -> subprocess.CompletedProcess[str]:
    return python("-m", "pipeline", *arguments)


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60)


def ended(body: str, *, json_asked: bool = False) -> subprocess.CompletedProcess[str]:
    """Run a command with this body and return the result."""
    arguments = "['--json']" if json_asked else "[]"
    return python(
        "-c",
        f"""
import os, sys
from export.errors import *
from pipeline.cli.console import Console
from pipeline.cli.ending import exit_code_of
console = Console.for_arguments({arguments})
def run():
    {body}
sys.exit(exit_code_of(run, console))
""",
    )


def outline() -> str:
    """Every command with its arguments and options, one per line."""
    lines = []
    for name in COMMANDS:
        command = group.get_command(click.Context(group), name)
        assert command is not None
        lines += [name, *(f"    {' '.join([*p.opts, *p.secondary_opts])}" for p in command.params)]
    return "\n".join(lines) + "\n"


def test_commands_and_options_are_those_of_the_snapshot() -> None:
    assert outline() == SNAPSHOT.read_text(encoding="utf-8")


def test_the_help_says_what_each_command_says_of_itself() -> None:
    for name, (module, line) in COMMANDS.items():
        command = getattr(importlib.import_module(module), name.replace("-", "_"))
        assert (command.name, command.get_short_help_str(limit=200)) == (name, line)


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], *([name, "--help"] for name in COMMANDS)], ids=" ".join)
def test_help_is_instant(arguments: list[str]) -> None:
    code = """
import sys
from pipeline.cli import group
try:
    group.main(sys.argv[1:], prog_name="pipeline")
finally:
    heavy = {"torch", "numpy", "pydantic", "yaml", "rich", "onnx", "onnxruntime"} & set(sys.modules)
    print(sorted(heavy), file=sys.stderr)
"""
    done = python("-c", code, *arguments)
    assert (done.returncode, done.stderr) == (0, "[]\n")
    assert done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["docter"], "no command 'docter', did you mean doctor? (see pipeline --help)"),
        (["zzz"], f"no command 'zzz', expected one of {', '.join(COMMANDS)} (see pipeline --help)"),
        (["doctor", "extra"], "Got unexpected extra argument (extra) (see pipeline doctor --help)"),
        (
            ["doctor", "--requir", "x"],
            "No such option '--requir'. Did you mean '--require'? (see pipeline doctor --help)",
        ),
        (
            ["doctor", "--require", "cudo"],
            "Invalid value for '--require': 'cudo' is not one of 'cuda', 'torch', 'onnxruntime-cpu', "
            "'onnxruntime-cuda', 'onnxruntime-tensorrt', 'openvino-cpu', 'tensorrt', 'tensorrt-rtx'. (see pipeline doctor --help)",
        ),
    ],
)
def test_a_mistake_in_the_command_is_one_line_and_exit_2(arguments: list[str], message: str) -> None:
    plain = pipeline(*arguments)
    assert (plain.returncode, plain.stdout, plain.stderr) == (2, "", f"error: {message}\n")
    as_json = pipeline(*arguments, "--json")
    assert as_json.returncode == 2
    assert json.loads(as_json.stdout) == {"error": {"kind": "UsageError", "message": message, "exit_code": 2}}


def test_no_command_shows_the_help_and_is_a_mistake() -> None:
    done = pipeline()
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("Usage: pipeline")


@pytest.mark.parametrize(
    ("error", "code"),
    [("UsageError", 2), ("NotTheSameError", 3), ("NotHereError", 4), ("DamagedError", 5)],
)
def test_an_error_of_ours_is_one_line_and_its_exit_code(error: str, code: int) -> None:
    done = ended(f"raise {error}('what\\nit is')")
    assert (done.returncode, done.stdout, done.stderr) == (code, "", "error: what it is\n")


def test_a_bug_keeps_its_traceback() -> None:
    done = ended("1 / 0", json_asked=True)
    assert done.returncode == 1
    assert json.loads(done.stdout) == {"error": {"kind": "ZeroDivisionError", "message": "division by zero", "exit_code": 1}}
    assert "Traceback" in done.stderr


@pytest.mark.parametrize(
    ("raising", "line"),
    [
        ("OSError(errno.EACCES, 'Permission denied', 'run')", "Permission denied: run; change its permissions, or choose another folder"),
        ("OSError(errno.EROFS, 'Read-only', 'run')", "Read-only: run; change its permissions, or choose another folder"),
        ("OSError(errno.ENOSPC, 'No space left on device')", "No space left on device; free some space, or choose another folder"),
        ("OSError(errno.EEXIST, 'File exists', '.b.12', None, 'b')", "File exists: b; move the existing file or folder away, or choose another path"),
        ("OSError(errno.ENAMETOOLONG, 'File name too long', 'x')", "File name too long: x; choose a shorter path"),
    ],
)
def test_what_the_disk_refuses_is_one_line(raising: str, line: str) -> None:
    done = ended(f"import errno; raise {raising}")
    assert (done.returncode, done.stderr) == (2, f"error: {line}\n")


@pytest.mark.parametrize("raising", ["OSError(errno.EIO, 'Input/output error', 'run')", "OSError('no number')", "FileNotFoundError(2, 'No', 'run')"])
def test_any_other_trouble_with_files_is_a_bug(raising: str) -> None:
    done = ended(f"import errno; raise {raising}")
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_a_run_folder_where_none_can_be_made_is_one_line() -> None:
    done = pipeline("train", "configs/quickstart.yaml", "--out", "/proc/run")
    assert done.returncode == 2
    assert done.stderr == "error: no folder can be made at /proc/run; choose another path\n"


def test_a_run_folder_inside_a_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = pipeline("train", "configs/quickstart.yaml", "--out", str(tmp_path / "file" / "run"))
    assert done.returncode == 2
    assert done.stderr == f"error: Not a directory: {tmp_path / 'file' / 'run'}; move the existing file or folder away, or choose another path\n"


def test_a_broken_pipe_inside_is_a_bug_as_well() -> None:
    done = ended("raise BrokenPipeError('to a worker')", json_asked=True)
    assert (done.returncode, json.loads(done.stdout)["error"]["exit_code"]) == (1, 1)
    assert "to a worker" in done.stderr


def test_an_interruption_is_130() -> None:
    done = ended("raise KeyboardInterrupt")
    assert (done.returncode, done.stderr) == (130, "error: interrupted; what was done is kept\n")


def test_ctrl_c_ends_a_running_command() -> None:
    code = """
from pipeline.cli.console import Console
from pipeline.cli.ending import exit_code_of
import sys, time
def run():
    print("ready", flush=True)
    time.sleep(30)
sys.exit(exit_code_of(run, Console()))
"""
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=10) == 130


def test_under_json_nothing_else_reaches_standard_output() -> None:
    done = ended(
        "import atexit; atexit.register(print, 'bye'); print('chatter'); os.write(1, b'native\\n'); "
        "console.result({'verdict': 'fail'}, 'table'); "
        "raise NotTheSameError('link 2')",
        json_asked=True,
    )
    assert done.stdout.count("\n") == 1
    assert json.loads(done.stdout) == {
        "verdict": "fail",
        "error": {"kind": "NotTheSameError", "message": "link 2", "exit_code": 3},
    }
    assert {"chatter", "native", "bye", "error: link 2"} <= set(done.stderr.splitlines())


def test_without_json_the_result_is_text() -> None:
    done = ended("console.result({'a': 1}, 'a table'); console.say('by the way')")
    assert (done.returncode, done.stdout, done.stderr) == (0, "a table\n", "by the way\n")


PRINTS = "from pipeline.cli.ending import *; sys.exit(exit_code_of(lambda: print('x'), Console()))"


ANSWERS = "from pipeline.cli.ending import *; sys.exit(exit_code_of(lambda: None, Console.for_arguments(['--json'])))"


@pytest.mark.parametrize("arguments", [["-m", "pipeline", "--help"], ["-c", PRINTS], ["-c", ANSWERS]], ids=["help", "print", "json"])
def test_a_reader_that_left_is_no_bug(arguments: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run([sys.executable, *arguments], cwd=ROOT, stdout=writing, stderr=subprocess.PIPE, timeout=60)
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (141, b"")


def test_progress_is_lines_where_there_is_no_terminal() -> None:
    body = "\n    ".join(
        [
            "with console.progress('training', 2) as progress:",
            "    progress.advance()",
            "    progress.line('epoch 1 of 1, loss [0.5]')",
        ]
    )
    done = ended(body)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "training: epoch 1 of 1, loss [0.5]\n")


def test_progress_is_a_bar_on_a_terminal() -> None:
    """Standard error is a pseudo-terminal here."""
    code = """
from pipeline.cli.console import Console
with Console().progress('training', 2) as progress:
    progress.advance(2)
    progress.line('loss [0.5]')
"""
    ours, theirs = os.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, stderr=theirs, stdout=subprocess.PIPE, env=environment, timeout=60)
    os.close(theirs)
    shown = _everything(ours)
    assert (done.returncode, done.stdout) == (0, b"")
    assert "2/2" in shown
    assert "loss [0.5]" in shown


def _everything(descriptor: int) -> str:
    parts = []
    try:
        while part := os.read(descriptor, 65536):
            parts.append(part)
    except OSError:  # this is how Linux reports that the other side of a terminal is closed
        pass
    finally:
        os.close(descriptor)
    return b"".join(parts).decode()


def test_the_shell_completes_commands() -> None:
    environment = {**os.environ, "_PIPELINE_COMPLETE": "bash_complete", "COMP_WORDS": "pipeline doc", "COMP_CWORD": "1"}
    command = [sys.executable, "-m", "pipeline"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "plain,doctor\n")


NOT_IMPORTED: dict[str, object] = {"network": None, "weights": None, "images": None, "finetune": 0, "out": None, "overrides": (), "dry_run": False}


@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        (
            "train-export",
            ["a/b.yaml", "--set", "x=1", "--set", "y=2", "--fresh", "--dry-run", "--json"],
            {"config": Path("a/b.yaml"), "out": None, "overrides": ("x=1", "y=2"), "resume": False, "required": (), "dry_run": True},
        ),
        (
            "train",
            ["b.yaml", "--out", "there", "--resume"],
            {"config": Path("b.yaml"), "out": Path("there"), "overrides": (), "resume": True, "dry_run": False},
        ),
        ("train", ["b.yaml"], {"config": Path("b.yaml"), "out": None, "overrides": (), "resume": None, "dry_run": False}),
        ("export", ["runs/b"], {"run_folder": Path("runs/b"), "required": (), **NOT_IMPORTED}),
        (
            "export",
            ["--network", "n", "--weights", "w", "--calibrate", "d", "--finetune", "3", "--out", "o", "--set", "a=b"],
            {
                "run_folder": None,
                "network": "n",
                "weights": Path("w"),
                "images": Path("d"),
                "finetune": 3,
                "out": Path("o"),
                "overrides": ("a=b",),
                "required": (),
                "dry_run": False,
            },
        ),
        (
            "verify",
            ["bundle", "--require", "onnxruntime-cpu", "--network", "m:f", "--report", "there"],
            {
                **dict.fromkeys(
                    ["certificate", "reference", "candidate", "samples", "max_ulp", "atol", "rtol", "precision", "memory_limit", "time_limit"]
                ),
                **dict.fromkeys(["only", "against", "junit"]),
                **dict.fromkeys(["map_", "size", "runtime"], ()),
                "bundle": Path("bundle"),
                "required": ("onnxruntime-cpu",),
                "network": "m:f",
                "report": Path("there"),
                "no_batch": False,
            },
        ),
    ],
)
def test_the_options_of_the_commands(name: str, arguments: list[str], expected: dict[str, object]) -> None:
    module, _ = COMMANDS[name]
    command = getattr(importlib.import_module(module), name.replace("-", "_"))
    assert command.make_context(name, arguments).params == expected


def test_a_run_goes_where_it_is_told_or_to_its_own_name() -> None:
    assert run_folder(Path("configs/quickstart.yaml"), None) == Path("runs/quickstart")
    assert run_folder(Path("configs/quickstart.yaml"), Path("there")) == Path("there")
