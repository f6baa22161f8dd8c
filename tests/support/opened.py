"""A form that is opened by a function: for tests of what is done with forms, not of any of them."""

from collections.abc import Callable
from dataclasses import dataclass

from deploy.runners.forms import Form, Variant
from deploy.runners.runner import Runner


@dataclass(frozen=True, kw_only=True)
class OpenedBy(Form):
    """Whatever `opener` gives."""

    opener: Callable[[], Runner]
    others: tuple[Variant, ...] = ()

    def open(self) -> Runner:
        return self.opener()

    def variants(self) -> tuple[Variant, ...]:
        return self.others
