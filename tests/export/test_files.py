import errno
import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from export import files
from export.errors import UsageError
from export.files import folder_in_work, publish_folder, sha256_of, sole_use, write_file


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_written_and_replaced_and_nothing_else_is_left(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_file(path, b"one")
    write_file(path, b"two")
    assert path.read_bytes() == b"two"
    assert names(tmp_path) == ["a.json"]


def test_a_file_has_the_permissions_of_an_ordinary_new_file(tmp_path: Path) -> None:
    write_file(tmp_path / "ours", b"")
    (tmp_path / "ordinary").touch()
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "ordinary").stat().st_mode


def test_a_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    write_file(path, b"old")

    def no_space(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(OSError, match="No space left"):
        write_file(path, b"new")
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["a.json"]


def publish(target: Path, content: bytes) -> None:
    with folder_in_work(target.parent) as staged:
        (staged / "inner").mkdir()
        (staged / "inner" / "file").write_bytes(content)
        publish_folder(staged, target)


@pytest.mark.parametrize("can_exchange", [True, False])
def test_a_folder_takes_the_place_of_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, can_exchange: bool) -> None:
    if not can_exchange:
        monkeypatch.setattr(files, "_exchanged", lambda one, other: False)
    publish(tmp_path / "bundle", b"one")
    publish(tmp_path / "bundle", b"two")
    assert (tmp_path / "bundle" / "inner" / "file").read_bytes() == b"two"
    assert names(tmp_path) == ["bundle"]


def test_an_error_while_filling_keeps_the_old_folder(tmp_path: Path) -> None:
    publish(tmp_path / "bundle", b"old")

    def fill_half() -> None:
        with folder_in_work(tmp_path) as staged:
            (staged / "half").write_bytes(b"...")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fill_half()
    assert (tmp_path / "bundle" / "inner" / "file").read_bytes() == b"old"
    assert names(tmp_path) == ["bundle"]


KILLED_WHILE_PUBLISHING = """
import os, sys
from pathlib import Path
from export.files import folder_in_work, publish_folder
number = 0
while True:
    number += 1
    target = Path(sys.argv[1])
    with folder_in_work(target.parent) as staged:
        (staged / "one").write_text(str(number))
        (staged / "two").write_text(str(number))
        publish_folder(staged, target)
    print(number, flush=True)
"""


def test_after_a_kill_there_is_the_old_folder_or_the_new_one(tmp_path: Path) -> None:
    for delay_in_rounds in range(1, 6):
        target = tmp_path / "bundle"
        with subprocess.Popen([sys.executable, "-c", KILLED_WHILE_PUBLISHING, str(target)], stdout=subprocess.PIPE, cwd=Path.cwd()) as process:
            assert process.stdout is not None
            for _ in range(delay_in_rounds):
                process.stdout.readline()
            os.kill(process.pid, signal.SIGKILL)
        assert (target / "one").read_text() == (target / "two").read_text()


HOLDS_A_FOLDER = """
import sys, time
from pathlib import Path
from export.files import folder_in_work, sole_use
with sole_use(Path(sys.argv[1])), folder_in_work(Path(sys.argv[1])) as staged:
    (staged / "half").write_text("...")
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_folder_has_one_user_until_that_one_dies(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLDS_A_FOLDER, str(tmp_path)], stdout=subprocess.PIPE, cwd=Path.cwd()) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        with pytest.raises(UsageError, match=f"^another run is using {tmp_path}; wait for it, or use another folder$"), sole_use(tmp_path):
            pass
        assert len([name for name in names(tmp_path) if name.startswith(".in-work.")]) == 1
        process.kill()
    (tmp_path / "of the user").mkdir()
    with sole_use(tmp_path):
        assert names(tmp_path) == [".lock", "of the user"]
    assert names(tmp_path) == ["of the user"]


def test_a_folder_that_was_made_for_nothing_is_removed(tmp_path: Path) -> None:
    with sole_use(tmp_path / "a" / "b"):
        assert names(tmp_path / "a" / "b") == [".lock"]
    assert names(tmp_path) == []
    with sole_use(tmp_path / "a" / "b"):
        (tmp_path / "a" / "b" / "result").touch()
    assert names(tmp_path / "a" / "b") == ["result"]


def test_a_lock_file_that_its_holder_removed_locks_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock, calls = fcntl.flock, list[int]()

    def removed_meanwhile(descriptor: int, operation: int) -> None:
        lock(descriptor, operation)
        calls.append(descriptor)
        if len(calls) == 1:
            (tmp_path / ".lock").unlink()

    monkeypatch.setattr(fcntl, "flock", removed_meanwhile)
    with sole_use(tmp_path):
        assert len(calls) == 2
        assert names(tmp_path) == [".lock"]


def test_a_file_system_without_locks_is_used_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(_: int, __: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with sole_use(tmp_path / "run"):
        assert names(tmp_path / "run") == [".lock"]


def test_the_hash_is_sha256() -> None:
    assert sha256_of(b"abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
