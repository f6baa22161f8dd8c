"""Training methods, one file each.

A new method is its file, its row in `METHODS`, and its options in `pipeline/config/methods.py`.
"""

from collections.abc import Callable
from typing import Any

from pipeline.config.methods import MethodOptions
from pipeline.methods.batchnorm import Batchnorm
from pipeline.methods.czmi import Czmi
from pipeline.methods.czmig import Czmig
from pipeline.methods.equinorm import Equinorm
from pipeline.methods.fixup import Fixup
from pipeline.methods.groupnorm import Groupnorm
from pipeline.methods.method import Method, ParameterGroup, RewrittenGraph, TrainingRules
from pipeline.methods.mimicnorm import Mimicnorm
from pipeline.methods.nonorm import Nonorm
from pipeline.methods.scaledws import Scaledws
from pipeline.methods.skipinit import Skipinit
from pipeline.methods.weightnorm import Weightnorm

METHODS: dict[str, Callable[[Any], Method]] = {
    "czmig": Czmig,
    "czmi": Czmi,
    "mimicnorm": Mimicnorm,
    "equinorm": Equinorm,
    "skipinit": Skipinit,
    "weightnorm": Weightnorm,
    "scaledws": Scaledws,
    "fixup": Fixup,
    "batchnorm": Batchnorm,
    "groupnorm": Groupnorm,
    "nonorm": Nonorm,
}


def method_from_options(options: MethodOptions) -> Method:
    """Return the method that the options belong to."""
    return METHODS[options.name](options)


__all__ = ["METHODS", "Method", "ParameterGroup", "RewrittenGraph", "TrainingRules", "method_from_options"]
