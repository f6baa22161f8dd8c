"""Files that the authors of a data set published: torchvision fetches them.

Takes paths and md5s; knows no format. A file is opened only if its md5 is the published one. The
error for a missing or damaged file is one line that says how to get it.
"""

from collections.abc import Callable
from pathlib import Path

from torchvision.datasets.utils import check_integrity

from export.errors import DamagedError, UsageError


class NotFetchedError(UsageError):
    """A data set is not where the config says."""


def fetch(name: str, url: str, root: str, download: Callable[[], object]) -> None:
    """Run torchvision's download, which leaves existing files alone."""
    try:
        download()
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"{name} could not be fetched from {url} into {root} ({reason}); fetch and unpack it there by hand") from error


def require_published(path: Path, md5: str, remedy: str) -> None:
    """Raise unless the file is the published one."""
    if not check_integrity(path, md5):
        what = "is not the data set's file: its md5 differs" if path.exists() else "is missing"
        raise DamagedError(f"{path} {what}; {remedy}")
