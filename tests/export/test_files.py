import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from export import files
from export.files import folder_in_work, publish_folder, sha256_of, write_file


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


def test_the_hash_is_sha256() -> None:
    assert sha256_of(b"abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
