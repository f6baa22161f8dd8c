"""Writes files and folders so that a kill leaves the old content or the new, never a mixture."""

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

_AT_FDCWD = -100  # these two are Linux's constants for renameat2, which Python does not wrap
_RENAME_EXCHANGE = 2
_EXCHANGE_UNSUPPORTED = {errno.ENOSYS, errno.EINVAL, errno.ENOTSUP}
_LOCKS_UNSUPPORTED = {errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP}
_LOCK = ".lock"
_IN_WORK = ".in-work."


def sha256_of(data: bytes) -> str:
    """The hash that identifies our files."""
    return hashlib.sha256(data).hexdigest()


def write_file(path: Path, data: bytes) -> None:
    """Write or replace one file, with the permissions that an ordinary new file would get."""
    if path.exists() and not path.is_file():
        raise UsageError(f"{path} exists but is not a regular file; choose another path")  # a device must not become a file
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())  # before the rename: the new name must not lead to content that is not on the disk
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    _sync_folder(path.parent)


@contextmanager
def sole_use(folder: Path) -> Iterator[None]:
    """Keep other processes out of a folder, which is made if it is missing.

    What a killed process left half-filled is removed. The kernel releases the lock when its holder
    dies. Folders that were made here and stay empty are removed again.
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
    """Make a folder that the user named, and its parents, where they are missing."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileNotFoundError as error:
        raise UsageError(f"no folder can be made at {folder}; choose another path") from error


def _locked(folder: Path) -> int:
    """The descriptor of the lock file, locked.

    The previous holder may just have removed the file. A lock on it protects nothing: try again.
    """
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
    import fcntl  # not available on every system that can open a bundle

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise UsageError(f"another run is using {folder}; wait for it, or use another folder") from error
    except OSError as error:
        if error.errno not in _LOCKS_UNSUPPORTED:
            raise  # a file system without locks is used without a lock


@contextmanager
def folder_in_work(parent: Path) -> Iterator[Path]:
    """A new hidden folder in `parent` to fill. Unless published, it is removed at the end."""
    parent.mkdir(parents=True, exist_ok=True)
    staged = parent / f"{_IN_WORK}{secrets.token_hex(6)}"
    staged.mkdir()
    try:
        yield staged
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def publish_folder(staged: Path, target: Path) -> None:
    """Let a filled folder replace target as a whole, once all of it is on the disk."""
    _sync_tree(staged)
    _put_in_place(staged, target)


def _put_in_place(staged: Path, target: Path) -> None:
    """Move the new folder to target. If the two were exchanged, the old one is at staged's path."""
    if not target.exists():
        staged.rename(target)
    elif not _exchanged(staged, target):
        # On file systems that cannot exchange two names, target is missing for this one moment.
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
    if number in _EXCHANGE_UNSUPPORTED:
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
