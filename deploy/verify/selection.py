"""Chains made fewer, smaller or stricter: one link of them, or all of one to the bit.

Takes chains, returns chains. Runs nothing.
"""

import difflib
from collections.abc import Collection, Sequence
from dataclasses import replace

from deploy.verify.chain import Chain
from export.errors import UsageError

BITWISE = "bitwise"


def selected(chains: Sequence[Chain], link: str | None, required: Collection[str]) -> list[Chain]:
    """What is left of chains when the user has said what they want.

    "bitwise" is wanted of the last chain: where there is an exact one, it is that, and nobody can have it of the others.
    """
    left = [*chains] if link is None else [only(chains, link)]
    return [*left[:-1], bitwise(left[-1])] if BITWISE in required else left


def required_runtimes(chain: Chain, required: Collection[str], link: str | None) -> set[str]:
    """The runtimes that must be here; where one link is looked at, those of others are nobody's business."""
    present = {stage.runtime for stage in chain.stages}
    return {name for name in required if name != BITWISE and (link is None or name in present)}


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
