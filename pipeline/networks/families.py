"""Networks whose names hold numbers, such as wrn-28-10.

One family covers all its members. Networks with a name of their own are in the table of
`__init__.py`.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

Builder = Callable[[int, int], nn.Module]
"""A function from the numbers of classes and of input channels to a network."""


@dataclass(frozen=True)
class Family:
    """Networks of one form: `form` is the name, with a word in capitals for each number.

    `build` takes the numbers and raises ValueError if they make no network.
    """

    form: str
    build: Callable[..., Builder]
    examples: tuple[str, ...]

    def builder_of(self, name: str) -> Builder | None:
        """Return the builder of the network of this name; None if the name is not of this form."""
        found = re.fullmatch(re.sub("[A-Z]+", r"([1-9]\\d{0,3})", self.form), name)
        return None if found is None else self.build(*map(int, found.groups()))

    def near(self, name: str) -> tuple[str, ...]:
        """Return names that the writer of this one may have meant.

        These are the name with its numbers in our form, if they make a network, and the examples.
        """
        numbers = iter(re.findall(r"\d+", name))
        spelled = re.sub("[A-Z]+", lambda word: next(numbers, word[0]), self.form)
        return (spelled, *self.examples) if self._builds(spelled) else self.examples

    def _builds(self, name: str) -> bool:
        try:
            return self.builder_of(name) is not None
        except ValueError:
            return False
