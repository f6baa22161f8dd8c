"""One look at one runtime, in a process of its own: a runtime that crashes or chatters stays in there.

`python -m deploy.runners.probe NAME` prints {"here": ..., "detail": ..., "facts": ...} as JSON.
"""

import json
import os
import sys
from dataclasses import asdict

from deploy.runners.base import Finding
from deploy.runners.table import RUNTIMES
from export.errors import NotHereError


def look_at(name: str) -> Finding:
    """Try the runtime; what it raises is a finding too."""
    probe = RUNTIMES[name].probe
    if probe is None:
        return Finding(False, "nothing here tries it")
    try:
        return probe()
    except NotHereError as error:
        return Finding(False, str(error).partition(";")[0])
    except Exception as error:  # a runtime that is broken is what this looks for
        return Finding(False, f"{type(error).__name__}: {error}")


def main(name: str) -> None:
    """Answer on standard output, which belongs to the answer alone."""
    answers_to = os.dup(1)
    os.dup2(2, 1)  # whatever a runtime prints is noise, not the answer
    os.write(answers_to, json.dumps(asdict(look_at(name))).encode())


if __name__ == "__main__":
    main(sys.argv[1])
