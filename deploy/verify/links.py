"""Forms of a model, the links between them, and the chain that they make; which of them a user asked for.

Plain data. Runs nothing.
"""

import difflib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Protocol

from deploy.compare.bits import Arrays
from deploy.compare.budget import Precision
from deploy.compare.tolerance import Tolerance
from deploy.runners.base import Runner
from deploy.runners.table import THREADS, RunOptions, other_runs, threads_in_words
from deploy.verify.invariance import LAYOUT, Variant
from deploy.verify.place import Places
from deploy.verify.request import VerifyRequest
from deploy.verify.verdict import (
    FrozenStatistics,
    NotFoldablePart,
    Requirement,
    TrainingOnlyPart,
)
from export.errors import UsageError

Batches = Callable[[], Iterable[Arrays]]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One form of the model."""

    name: str
    runtime: str
    device: str
    precision: Precision
    """What was asked for; the budget follows from it."""
    open: Callable[[], Runner]
    invariance_required: Requirement | None = "budget"
    """What must hold when it runs again, in other batches, or as one of its variants; None where that is not checked."""
    invariance_tolerance: Tolerance | None = None
    """Stated exactly where a tolerance is what must hold."""
    batched: bool = True
    """Whether the first axis of everything counts samples, so that other batches must give the same."""
    profile: tuple[int, ...] = ()
    """Sizes of batches that it was made for and that are tried beside those of every stage."""
    variants: tuple[Variant, ...] = ()
    """The same stage under the other settings that its runtime has: threads, memory layout, optimisation."""


@dataclass(frozen=True)
class Link:
    """Two forms that must be the same function."""

    from_: str
    to: str
    required: Requirement
    tolerance: Tolerance | None = None
    """Stated exactly where a tolerance is required."""
    places: Callable[[Arrays], Places] | None = None
    """How the two are cut, so that a failure's place can be found on a batch; None where they cannot be."""

    def __post_init__(self) -> None:
        if (self.required == "tolerance") != (self.tolerance is not None):
            raise ValueError(f"a tolerance goes with the requirement of one, got {self}")


@dataclass(frozen=True, kw_only=True)
class Chain:
    """Stages, the links between them, and the two on which every budget rests."""

    stages: tuple[Stage, ...]
    links: tuple[Link, ...]
    reference: Stage | None
    """The float64 evaluation of the function; None where there is none, and then no link can be within a budget."""
    training: str
    """The stage whose error sets the budgets."""
    doubtful: bool = False
    """Whether the float64 evaluation is other code than that stage's; see `budget`."""
    infinity_allowed: bool = False
    """Whether an infinity that all agree about is an answer; of scores of classes it is none."""

    def __post_init__(self) -> None:
        names = [stage.name for stage in self.everything]
        if len(set(names)) != len(names):
            raise ValueError(f"two stages have one name: {names}")
        ends = [stage.name for stage in self.stages]
        unknown = {self.training, *(end for link in self.links for end in (link.from_, link.to))} - set(ends)
        if unknown or any(link.from_ == link.to for link in self.links):
            raise ValueError(f"links must join two different stages of {ends}, got {self.links}")
        if self.reference is None and any(link.required == "budget" for link in self.links):
            raise ValueError(f"without a float64 evaluation no budget can be derived, got {self.links}")

    @property
    def everything(self) -> tuple[Stage, ...]:
        """The stages, and the float64 evaluation where there is one."""
        return (*self.stages, *([self.reference] if self.reference else []))


@dataclass(frozen=True, kw_only=True)
class Record:
    """What the caller knows and the verdict repeats."""

    files: Mapping[str, str] = field(default_factory=dict)
    """Name of every file that was run, with its SHA-256."""
    samples_made: tuple[str, ...] = ()
    training_only: tuple[TrainingOnlyPart, ...] = ()
    not_foldable: tuple[NotFoldablePart, ...] = ()
    frozen_statistics: FrozenStatistics | None = None


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


def selected(chains: Sequence[Chain], request: VerifyRequest) -> list[Chain]:
    """What is left of chains when the user has said what they want.

    Bits are required of the last chain: where there is an exact one, it is that, and nobody can have them of the others.
    """
    left = [*chains] if request.only is None else [only(chains, request.only)]
    return [*left[:-1], bitwise(left[-1])] if request.bitwise else left


def required_runtimes(chain: Chain, request: VerifyRequest, always: Collection[str] = ()) -> set[str]:
    """The runtimes that must be here, `always` included; where one link is looked at, those of others are nobody's business."""
    present = {stage.runtime for stage in chain.stages}
    return {name for name in (*request.require, *always) if request.only is None or name in present}


def only(chains: Sequence[Chain], asked: str) -> Chain:
    """A chain of the one link of that name, with the stages that it needs."""
    names = {f"{link.from_} -> {link.to}": (chain, link) for chain in chains for link in chain.links}
    fitting = [name for name in names if asked == name] or [name for name in names if asked.lower() in name.lower()]
    if len(fitting) != 1:
        near = difflib.get_close_matches(asked, names, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near and not fitting else f"choose one of {', '.join(map(repr, fitting or names))}"
        raise UsageError(f"--only {asked!r} fits {len(fitting)} links; {hint}")
    chain, link = names[fitting[0]]
    budget = link.required == "budget"
    needed = {link.from_, link.to, *([chain.training] if budget else [])}
    return replace(
        chain,
        stages=tuple(stage for stage in chain.stages if stage.name in needed),
        links=(link,),
        training=chain.training if budget else link.from_,
        reference=chain.reference if budget else None,
    )


def bitwise(chain: Chain) -> Chain:
    """Every link and every check of a stage must give the same bits."""
    links = tuple(replace(link, required="bitwise", tolerance=None) for link in chain.links)
    stages = tuple(replace(stage, invariance_required=stage.invariance_required and "bitwise", invariance_tolerance=None) for stage in chain.stages)
    return replace(chain, links=links, stages=stages)
