"""Forms of a model, the links between them, and the chain they make; which links a user selects.

Plain data. Runs nothing.
"""

import difflib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from deploy.compare.bits import Arrays
from deploy.compare.tolerance import Tolerance
from deploy.runners.forms import Form
from deploy.runners.runner import Point
from deploy.verify.place import Pairing, paired
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
    """A form of the model, its name in the verdict, and the checks that it must pass by itself."""

    name: str
    form: Form
    invariance_required: Requirement | None = "budget"
    """What must hold when it runs again, in other batches, or as a variant. None: not checked."""
    invariance_tolerance: Tolerance | None = None
    """Given if and only if the requirement is a tolerance."""
    batched: bool = True
    """Whether the first axis of everything counts samples, so that other batches must agree."""
    profile: tuple[int, ...] = ()
    """Further batch sizes to try: those that the form was made for."""


Pairs = Callable[[Sequence[Point], Sequence[Point]], list[Pairing]]


@dataclass(frozen=True)
class Link:
    """Two forms that must be the same function."""

    from_: str
    to: str
    required: Requirement
    tolerance: Tolerance | None = None
    """Given if and only if a tolerance is required."""
    pairs: Pairs | None = paired
    """Which inner tensors are the same, to find where a failure begins. None: no search."""

    def __post_init__(self) -> None:
        if (self.required == "tolerance") != (self.tolerance is not None):
            raise ValueError(f"a tolerance goes with the requirement of one, got {self}")


@dataclass(frozen=True, kw_only=True)
class Chain:
    """Stages, the links between them, and the two stages on which every budget rests."""

    stages: tuple[Stage, ...]
    links: tuple[Link, ...]
    reference: Stage | None
    """The float64 evaluation of the function. Without one, no link can be within a budget."""
    training: str
    """The stage whose error sets the budgets."""
    source: Form | None = None
    """The same function with inner tensors, for the search of a failure's place.

    None if the stage itself shows them.
    """
    uncertain: bool = False
    """Whether the float64 evaluation is not the code of that stage; see `budget`."""
    infinity_allowed: bool = False
    """Whether an infinity on which all agree is an answer. For the scores of classes it is not."""

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
        """The stages, and the float64 evaluation if there is one."""
        return (*self.stages, *([self.reference] if self.reference else []))

    def form(self, name: str) -> Form:
        """The form of the stage with that name."""
        return next(stage.form for stage in self.stages if stage.name == name)


@dataclass(frozen=True, kw_only=True)
class Record:
    """What the caller knows and the verdict repeats."""

    files: Mapping[str, str] = field(default_factory=dict)
    """The SHA-256 of every file that was run, by name."""
    samples_made: tuple[str, ...] = ()
    training_only: tuple[TrainingOnlyPart, ...] = ()
    not_foldable: tuple[NotFoldablePart, ...] = ()
    frozen_statistics: FrozenStatistics | None = None


def selected(chains: Sequence[Chain], request: VerifyRequest) -> list[Chain]:
    """The chains that remain after the user's selection.

    Bits are required of the last chain. If there is an exact chain, it is the last one. The others
    cannot give the same bits everywhere.
    """
    left = [*chains] if request.only is None else [only(chains, request.only)]
    return [*left[:-1], bitwise(left[-1])] if request.bitwise else left


def required_runtimes(chain: Chain, request: VerifyRequest, always: Collection[str] = ()) -> set[str]:
    """The runtimes that must be available, including `always`.

    If only one link is checked, the runtimes of other links are not needed.
    """
    present = {stage.form.runtime for stage in chain.stages}
    return {name for name in (*request.require, *always) if request.only is None or name in present}


def only(chains: Sequence[Chain], asked: str) -> Chain:
    """A chain with only the link of that name, and the stages that the link needs."""
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
    """The chain with the same bits required of every link and of every check of a stage."""
    links = tuple(replace(link, required="bitwise", tolerance=None) for link in chain.links)
    stages = tuple(replace(stage, invariance_required=stage.invariance_required and "bitwise", invariance_tolerance=None) for stage in chain.stages)
    return replace(chain, links=links, stages=stages)
