"""Writing so that a kill at any moment leaves the old content or the new, never a half: files, and whole folders."""

import ctypes
import errno
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from export.errors import UsageError

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_EXCHANGE_IS_NOT_TO_BE_HAD = {errno.ENOSYS, errno.EINVAL, errno.ENOTSUP}
_LOCKS_ARE_NOT_TO_BE_HAD = {errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP}
_LOCK = ".lock"
_IN_WORK = ".in-work."


def sha256_of(data: bytes) -> str:
    """The hash under which our files are known."""
    return hashlib.sha256(data).hexdigest()


def write_file(path: Path, data: bytes) -> None:
    """Write or replace one file, with the permissions that an ordinary new file would get."""
    if path.exists() and not path.is_file():
        raise UsageError(f"{path} is there and no file; choose another path")  # a device would be replaced by a file
    beside = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    try:
        with beside.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
    _sync_folder(path.parent)


@contextmanager
def sole_use(folder: Path) -> Iterator[None]:
    """Keep other processes out of a folder, which is made where it is missing; what a killed one left half-filled is removed.

    The kernel gives the lock back when its holder dies. Folders that were made for nothing are removed again.
    """
    made = [each for each in (folder, *folder.parents) if not each.exists()]
    lock = _locked(folder)
    try:
        for leftover in folder.glob(f"{_IN_WORK}*"):
            shutil.rmtree(leftover, ignore_errors=True)
        yield
    finally:
        (folder / _LOCK).unlink(missing_ok=True)
        os.close(lock)
        with suppress(OSError):
            for each in made:
                each.rmdir()


def make_folder(folder: Path) -> None:
    """Make a folder that the user named, and those above it, where they are missing."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileNotFoundError as error:
        raise UsageError(f"no folder can be made at {folder}; choose another path") from error


def _locked(folder: Path) -> int:
    """The descriptor of the lock file, locked. A file that its holder has just removed locks nothing: then once more."""
    path = folder / _LOCK
    while True:
        make_folder(folder)
        with suppress(FileNotFoundError):
            lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
            try:
                _lock(lock, folder)
                if os.path.samestat(os.fstat(lock), path.stat()):
                    return lock
            except BaseException:
                os.close(lock)
                raise
            os.close(lock)


def _lock(descriptor: int, folder: Path) -> None:
    import fcntl  # not on every system that can open a bundle

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise UsageError(f"another run is using {folder}; wait for it, or use another folder") from error
    except OSError as error:
        if error.errno not in _LOCKS_ARE_NOT_TO_BE_HAD:
            raise


@contextmanager
def folder_in_work(parent: Path) -> Iterator[Path]:
    """A new folder to fill, hidden in `parent`; what was not published when the block ends is removed."""
    parent.mkdir(parents=True, exist_ok=True)
    staged = parent / f"{_IN_WORK}{secrets.token_hex(6)}"
    staged.mkdir()
    try:
        yield staged
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def publish_folder(staged: Path, target: Path) -> None:
    """Let a filled folder take target's place, whole, once all of it is on the disk."""
    _sync_tree(staged)
    _put_in_place(staged, target)


def _put_in_place(staged: Path, target: Path) -> None:
    """After this, target is the new folder; what stood there, if it was exchanged, is at staged's place."""
    if not target.exists():
        staged.rename(target)
    elif not _exchanged(staged, target):
        # The one moment without a folder at target, on file systems that cannot exchange two names.
        aside = target.with_name(f"{target.name}.old")
        shutil.rmtree(aside, ignore_errors=True)
        target.rename(aside)
        staged.rename(target)
        shutil.rmtree(aside, ignore_errors=True)
    _sync_folder(target.parent)


def _exchanged(one: Path, other: Path) -> bool:
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    if rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in _EXCHANGE_IS_NOT_TO_BE_HAD:
        return False
    raise OSError(number, os.strerror(number), str(other))


def _sync_tree(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        else:
            _sync_folder(path)
    _sync_folder(folder)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
