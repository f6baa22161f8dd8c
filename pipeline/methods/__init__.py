"""Training methods, one file each.

A new method is its file, and its options in `pipeline/config/methods.py`, which name it.
The method `name` is the class `Name` in `pipeline/methods/name.py`.
"""

from collections.abc import Callable
from importlib import import_module
from typing import Any, cast, get_args

from pipeline.config.methods import MethodOptions
from pipeline.methods.method import Method, ParameterGroup, RewrittenGraph, TrainingRules


def _named_in(options: Any) -> str:
    (name,) = get_args(options.model_fields["name"].annotation)
    return str(name)


def _class_of(name: str) -> Callable[[Any], Method]:
    return cast("Callable[[Any], Method]", getattr(import_module(f"{__name__}.{name}"), name.capitalize()))


METHODS = {name: _class_of(name) for name in map(_named_in, get_args(get_args(MethodOptions)[0]))}
"""In the order of their options."""


def method_from_options(options: MethodOptions) -> Method:
    """Return the method that the options belong to."""
    return METHODS[options.name](options)


__all__ = ["METHODS", "Method", "ParameterGroup", "RewrittenGraph", "TrainingRules", "method_from_options"]
