"""How a command ends: exit code, one line for what a user can fix, a traceback for a bug.

Takes the function that runs a command. Knows no particular command.
"""

import errno
import select
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass

import click

from export.errors import SamegraphError, UsageError
from pipeline.cli.console import Console

BUG = 1
INTERRUPTED = 130
NOBODY_READS = 141
"""What a shell reports for a tool whose output was piped into one that has ended, such as
`head`."""

_OTHER_RIGHTS = "change its permissions, or choose another folder"
_MORE_ROOM = "free some space, or choose another folder"
_OTHER_PATH = "move the existing file or folder away, or choose another path"
_FIXED_BY_THE_USER = {
    errno.EACCES: _OTHER_RIGHTS,
    errno.EPERM: _OTHER_RIGHTS,
    errno.EROFS: _OTHER_RIGHTS,
    errno.ENOSPC: _MORE_ROOM,
    errno.EDQUOT: _MORE_ROOM,
    errno.ENOTDIR: _OTHER_PATH,
    errno.EISDIR: _OTHER_PATH,
    errno.EEXIST: _OTHER_PATH,
    errno.ELOOP: _OTHER_PATH,
    errno.ENAMETOOLONG: "choose a shorter path",
}
"""Errors of the user's disk, and what to do about each. Every other OSError is a bug."""


@dataclass(frozen=True)
class _Failure:
    kind: str
    message: str
    exit_code: int


def exit_code_of(run: Callable[[], None], console: Console) -> int:
    """Run a command and report how it went; only the interpreter's own exits pass through."""
    try:
        failure = _failure_of(run, console)
        console.close(None if failure is None else vars(failure))
        sys.stdout.flush()  # here, because at the interpreter's end a reader that left causes a warning
    except BrokenPipeError:
        if not _nobody_reads():
            raise
        return NOBODY_READS
    return 0 if failure is None else failure.exit_code


def _failure_of(run: Callable[[], None], console: Console) -> _Failure | None:
    try:
        run()
    except click.exceptions.Exit as leave:
        return None if leave.exit_code == 0 else _Failure("Exit", "", leave.exit_code)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return _Failure(UsageError.__name__, "no command given", UsageError.exit_code)
    except click.ClickException as error:
        return _told(_Failure(UsageError.__name__, _usage(error), UsageError.exit_code), console)
    except SamegraphError as error:
        return _told(_Failure(type(error).__name__, str(error), error.exit_code), console)
    except (KeyboardInterrupt, click.Abort):
        return _told(_Failure("Interrupted", "interrupted; what was done is kept", INTERRUPTED), console)
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _nobody_reads():
            raise
        if isinstance(error, OSError) and error.errno in _FIXED_BY_THE_USER:
            return _told(_Failure(UsageError.__name__, _of_the_disk(error), UsageError.exit_code), console)
        traceback.print_exc()
        return _Failure(type(error).__name__, str(error), BUG)
    return None


def _told(failure: _Failure, console: Console) -> _Failure:
    console.error(failure.message)
    return failure


def _usage(error: click.ClickException) -> str:
    context = error.ctx if isinstance(error, click.UsageError) else None
    hint = f" (see {context.command_path} --help)" if context else ""
    return error.format_message() + hint


def _of_the_disk(error: OSError) -> str:
    """Name the target of a failed renaming, because the source is a hidden file of ours."""
    path = error.filename2 or error.filename
    place = f": {path}" if isinstance(path, str) else ""
    return f"{error.strerror}{place}; {_FIXED_BY_THE_USER[error.errno or 0]}"


def _nobody_reads() -> bool:
    """Return whether the reader of our output has left.

    A broken pipe to a worker is a bug and is reported as one.
    """
    poll = select.poll()
    for descriptor in (1, 2):
        poll.register(descriptor, 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
