"""A form that a function opens, for tests of what is done with forms in general."""

from collections.abc import Callable
from dataclasses import dataclass

from deploy.runners.forms import Form, Variant
from deploy.runners.runner import Runner


@dataclass(frozen=True, kw_only=True)
class OpenedBy(Form):
    """Opens as whatever `opener` returns."""

    opener: Callable[[], Runner]
    others: tuple[Variant, ...] = ()

    def open(self) -> Runner:
        return self.opener()

    def variants(self) -> tuple[Variant, ...]:
        return self.others
