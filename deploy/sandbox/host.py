"""The host process: opens untrusted files and runs them for its owner, who only receives numbers.

`process.py` starts it with two descriptors. Its standard output is left to what runtimes print.
"""

import os
import resource
import sys
import tempfile
from pathlib import Path
from typing import Any

from deploy.runners.runner import Runner, TensorSpec
from deploy.sandbox.file_kinds import OF_OURS, OUT_OF_MEMORY, Opening
from deploy.sandbox.opening import contents_of, open_form
from deploy.sandbox.wire import ClosedError, Message, receive, send
from export.errors import SamegraphError

_ALLOCATION_FAILURES = ("Failed to allocate memory", "can't allocate memory", "std::bad_alloc")
"""What runtimes say instead of raising MemoryError: ONNX Runtime, PyTorch, C++."""


def main() -> None:
    """Answer requests until the owner is gone."""
    requests, answers, memory = (int(argument) for argument in sys.argv[1:4])
    _limit(memory)
    opened: dict[int, Runner] = {}
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # a file that names others by relative paths finds nothing
        while True:
            try:
                message = receive(requests)
            except ClosedError:
                return
            except MemoryError:
                sys.exit(OUT_OF_MEMORY)  # half of a message has been read, so it cannot go on
            send(answers, _answer(message, opened, limited=memory > 0))


def _limit(memory: int) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a crash leaves no core file
    if memory:
        resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))


def _answer(message: Message, opened: dict[int, Runner], *, limited: bool) -> Message:
    try:
        return _done(message, opened)
    except MemoryError:
        return Message({"error": MemoryError.__name__, "message": ""})
    except SamegraphError as error:
        return Message({"error": next((name for name in OF_OURS if name in _bases(error)), ""), "message": str(error)})
    except Exception as error:
        if limited and any(words in str(error) for words in _ALLOCATION_FAILURES):
            return Message({"error": MemoryError.__name__, "message": ""})
        return Message({"error": "", "message": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"})


def _done(message: Message, opened: dict[int, Runner]) -> Message:
    head: Any = message.head
    match head["do"]:
        case "look":
            return Message({"contents": contents_of(head["kind"], Path(head["path"]))})
        case "open":
            runner = open_form(Opening.from_json(head["opening"]))
            opened[head["number"]] = runner
            return Message({"inputs": _specs(runner.inputs), "outputs": _specs(runner.outputs), "facts": dict(runner.facts), "name": runner.name})
        case "run":
            return Message({}, opened[head["number"]].run(message.arrays))
        case "close":
            opened.pop(head["number"]).close()
            return Message({})
        case other:
            raise ValueError(f"no request {other!r}")


def _bases(error: Exception) -> list[str]:
    return [base.__name__ for base in type(error).__mro__]


def _specs(specs: tuple[TensorSpec, ...]) -> list[object]:
    return [[spec.name, spec.dtype, list(spec.shape)] for spec in specs]


if __name__ == "__main__":
    main()
