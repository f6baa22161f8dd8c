"""The variants that a stage has because of the runtime it is in: threads, memory layout, optimisation.

Takes a function that opens the stage with given settings. Opens nothing itself.
"""

from functools import partial
from typing import Protocol

from deploy.runners.base import Runner
from deploy.runners.table import THREADS, RunOptions, other_runs, threads_in_words
from deploy.verify.invariance import LAYOUT, Variant


class OpensFile(Protocol):
    """Opens a file with these options."""

    def __call__(self, options: RunOptions) -> Runner: ...


class OpensModule(Protocol):
    """Opens a PyTorch module; see `TorchRunner` for the settings."""

    def __call__(self, *, threads: int = 0, channels_last: bool = False) -> Runner: ...


def file_variants(runtime: str, options: RunOptions, open_: OpensFile) -> tuple[Variant, ...]:
    """The other ways in which a runtime may run a file."""
    return tuple(Variant(check=other.choice, setting=other.setting, open=partial(open_, other.options)) for other in other_runs(runtime, options))


def torch_variants(device: str, open_: OpensModule) -> tuple[Variant, ...]:
    """The other ways in which PyTorch may run a module on a kind of device."""
    layout = Variant(check=LAYOUT, setting="channels last", open=partial(open_, channels_last=True))
    numbers = THREADS if device == "cpu" else ()
    return (layout, *(Variant(check="threads", setting=threads_in_words(number), open=partial(open_, threads=number)) for number in numbers))
