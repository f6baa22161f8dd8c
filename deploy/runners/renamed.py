"""A runner under other names: what the caller calls its inputs and outputs.

Takes a runner and the names. Runs nothing itself.
"""

from collections.abc import Mapping
from dataclasses import replace

from deploy.runners.base import Array, Runner


class RenamedRunner(Runner):
    """`names` maps the caller's names to the runner's; those that are not in it stay."""

    def __init__(self, inner: Runner, names: Mapping[str, str]) -> None:
        self._inner = inner
        self._theirs = dict(names)
        ours = {theirs: own for own, theirs in names.items()}
        self.name = inner.name
        self.inputs = tuple(replace(spec, name=ours.get(spec.name, spec.name)) for spec in inner.inputs)
        self.outputs = tuple(replace(spec, name=ours.get(spec.name, spec.name)) for spec in inner.outputs)
        self._ours = ours

    @property
    def facts(self) -> Mapping[str, object]:
        return {**self._inner.facts, **({"names": self._theirs} if self._theirs else {})}

    def close(self) -> None:
        self._inner.close()

    def _run(self, batch: Mapping[str, Array]) -> dict[str, Array]:
        found = self._inner.run({self._theirs.get(name, name): rows for name, rows in batch.items()})
        return {self._ours.get(name, name): rows for name, rows in found.items()}
