"""Networks whose names hold numbers, such as wrn-28-10: one family for all of them, beside the table of those with a name of their own."""

import re
from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

Builder = Callable[[int, int], nn.Module]
"""From the numbers of classes and of input channels to a network."""


@dataclass(frozen=True)
class Family:
    """`form` is the name with a word in capitals for each number; `build` takes the numbers, and raises ValueError for those that make no network."""

    form: str
    build: Callable[..., Builder]
    examples: tuple[str, ...]

    def builder_of(self, name: str) -> Builder | None:
        """What builds the network of this name; None where the name is not of this form."""
        found = re.fullmatch(re.sub("[A-Z]+", r"([1-9]\\d{0,3})", self.form), name)
        return None if found is None else self.build(*map(int, found.groups()))

    def near(self, name: str) -> tuple[str, ...]:
        """Names that someone may have meant who wrote this one: with its numbers where they make a network, else the examples."""
        numbers = iter(re.findall(r"\d+", name))
        spelled = re.sub("[A-Z]+", lambda word: next(numbers, word[0]), self.form)
        return (spelled, *self.examples) if self._builds(spelled) else self.examples

    def _builds(self, name: str) -> bool:
        try:
            return self.builder_of(name) is not None
        except ValueError:
            return False
