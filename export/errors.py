"""The errors that a user can cause or meet, each with the exit code of the command.

Raise them with one line: what, got, expected, what to do. Anything else that is raised is a bug
and keeps its traceback.
"""

from typing import ClassVar


class SamegraphError(Exception):
    """A condition that is reported in one line, without a traceback."""

    exit_code: ClassVar[int]


class UsageError(SamegraphError):
    """The command, the config or the input data cannot be used as given."""

    exit_code = 2


class NotTheSameError(SamegraphError):
    """Two forms of a model do not give the same outputs."""

    exit_code = 3


class NotHereError(SamegraphError):
    """A runtime or a device that was requested is not available on this machine."""

    exit_code = 4


class DamagedError(SamegraphError):
    """A file is damaged, hostile, or not what its manifest says."""

    exit_code = 5
