"""A step that is replayed as a CUDA graph leaves the bits of one that is launched kernel by kernel, for every method."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from pipeline.config import parse_config
from pipeline.config.methods import MethodOptions
from pipeline.methods.base import Rewritten
from pipeline.training import Settings, TrainingData, train

METHODS = ("batchnorm", "czmi", "czmig", "equinorm", "fixup", "groupnorm", "mimicnorm", "nonorm", "scaledws", "skipinit", "weightnorm")


SETTINGS = (("float32", "none"), ("bfloat16", "norm"), ("float32", "adaptive"))
"""Precision and clipping."""


@pytest.mark.skipif(not torch.cuda.is_available(), reason="not run: no CUDA device here")
@pytest.mark.parametrize("method", METHODS)
def test_replayed_training_has_the_same_bits(
    method: str, build: Callable[[MethodOptions], Rewritten], data: TrainingData, settings: Settings
) -> None:
    for precision, clip in SETTINGS:
        parsed = parse_config({"method": {"name": method}, "training": {"clip": {"name": clip}, "precision": precision}})
        options = {"device": "cuda", "deterministic": True, "clip": parsed.training.clip, "precision": precision}
        launched, replayed = (_trained(build(parsed.method), data, settings, options | {"cuda_graphs": cuda_graphs}) for cuda_graphs in (False, True))
        assert launched.keys() == replayed.keys()
        assert [name for name, value in launched.items() if not torch.equal(value, replayed[name])] == []


def _trained(network: Rewritten, data: TrainingData, settings: Settings, options: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The weights and every epoch's figures."""
    history = train(network, data, replace(settings, training=settings.training.model_copy(update=options)))
    figures = [[record.train_loss, record.train_accuracy, record.test_loss, record.penalty or 0.0] for record in history.records]
    return {**{name: value.cpu() for name, value in network.graph.state_dict().items()}, "figures": torch.tensor(figures, dtype=torch.float64)}
