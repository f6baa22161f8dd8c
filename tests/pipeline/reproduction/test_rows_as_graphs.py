"""Rows that override the method of a config file become training graphs too.

Another test builds those of the files. Where the row's network has a hundred layers, a smaller one
of the same kind is used: a method does not know its network.
"""

import pytest
from small_table import CONFIGS

from pipeline.config import Config, parse_config
from pipeline.reproduction.papers import TABLES, Row
from pipeline.reproduction.planned_runs import config_of
from pipeline.training_graph import ImageFacts, training_graph

SMALLER = {"resnet110": "resnet20", "vgg16": "vgg11", "torchvision:resnet18": "torchvision:resnet18"}


def of_another_method() -> list[tuple[int, Row, Config]]:
    """One row for each method that no file has."""
    found: dict[object, tuple[int, Row, Config]] = {}
    for table in TABLES.values():
        for row in table.rows:
            config = config_of(row, CONFIGS)
            if config.method != config_of(row, CONFIGS, ()).method or row.overrides:
                found.setdefault((config.method, config.training.clip), (table.images.num_classes, row, config))
    return list(found.values())


ROWS = of_another_method()


def test_there_are_such_rows() -> None:
    assert {"czmig-0.1-z1-noise0.1", "none-0.01", "weight-mean-0.01", "threshold-10"} <= {row.name for _, row, _ in ROWS}


@pytest.mark.parametrize(("num_classes", "row", "config"), ROWS, ids=[row.name for _, row, _ in ROWS])
def test_a_row_becomes_a_training_graph(num_classes: int, row: Row, config: Config) -> None:
    network, width = SMALLER[config.network.name], 64 if config.data.name == "imagefolder" else 32
    smaller = parse_config(config.model_dump() | {"network": {"name": network}})
    graph = training_graph(smaller, ImageFacts((3, width, width), num_classes, (0.0,) * 3, (1.0,) * 3)).graph
    assert sum(parameter.numel() for parameter in graph.parameters()) > 10_000
    last_norms = [name for name, _ in graph.named_buffers() if "running_var" in name]
    assert bool(last_norms) == (config.method.name == "batchnorm" or getattr(config.method, "last_norm", False))
