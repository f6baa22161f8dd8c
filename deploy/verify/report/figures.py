"""Numbers as the report writes them. Takes whatever stands in their place."""

import math

from deploy.verify.report.drawing import short_number

NOTHING = "\N{EN DASH}"


def number_in(value: object) -> float | None:
    """A finite float, or None: JSON's null, and the strings that stand for NaN and the infinities."""
    number = float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    return number if math.isfinite(number) else None


def figure(value: object) -> str:
    """A number (or whatever stands in its place) in few signs; integers in full."""
    if value is None:
        return NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    number = number_in(value)
    if number is None:
        return str(value)
    return short_number(number, 3)


def percent(share: float | None) -> str:
    if share is None:
        return NOTHING
    if share == math.inf:
        return "> 100 %"
    return f"{100 * share:.2g} %" if share < 1 else f"{share:,.2f} times" if share < 10 else f"{share:,.0f} times"
