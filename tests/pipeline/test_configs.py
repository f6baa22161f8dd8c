"""Every published config becomes a training graph.

The method accepts the network, and mixup finds its places.
"""

from pathlib import Path

import pytest
import torch
from torch import nn

from pipeline.config import Config, load_config
from pipeline.training.mixup import Mixup
from pipeline.training_graph import ImageFacts, training_graph

CONFIGS = Path(__file__).parents[2] / "configs"
IMAGES = {"cifar10": (10, 32), "cifar100": (100, 32), "svhn": (10, 32), "imagenet": (1000, 224)}
"""By folder: the number of classes, and the width of images."""
FILES = sorted(path for folder in IMAGES for path in (CONFIGS / folder).glob("*.yaml"))


def graph_of(config: Config, folder: str) -> torch.fx.GraphModule:
    num_classes, width = IMAGES[folder]
    return training_graph(config, ImageFacts((3, width, width), num_classes, (0.0,) * 3, (1.0,) * 3)).graph


def one_of_a_kind() -> list[Path]:
    """One file for each network, method and mixup; files may differ in schedules alone."""
    found: dict[tuple[object, ...], Path] = {}
    for path in FILES:
        config = load_config(path)
        found.setdefault((path.parent.name, config.network, config.method, config.training.mixup), path)
    return list(found.values())


def test_every_folder_is_one_of_a_data_set() -> None:
    assert {path.name for path in CONFIGS.iterdir() if path.is_dir()} == set(IMAGES)
    assert all(load_config(path).data.name in (path.parent.name, "imagefolder") for path in FILES)


@pytest.fixture
def no_initial_weights_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip the network's own draws: they take longer than everything else, and methods draw
    again."""
    for name in ("kaiming_uniform_", "kaiming_normal_", "normal_", "uniform_", "trunc_normal_"):
        monkeypatch.setattr(nn.init, name, lambda tensor, *_, **__: tensor.detach().zero_())


@pytest.mark.slow
@pytest.mark.usefixtures("no_initial_weights_of_its_own")
@pytest.mark.parametrize("path", one_of_a_kind(), ids=lambda path: str(path.relative_to(CONFIGS)))
def test_a_config_becomes_a_training_graph(path: Path) -> None:
    config = load_config(path)
    graph = graph_of(config, path.parent.name)
    places = [part for part in graph.modules() if isinstance(part, Mixup)]
    assert (len(places) > 1) == (config.training.mixup.where == "hidden" and config.training.mixup.alpha > 0)
    assert sum(parameter.numel() for parameter in graph.parameters()) > 10_000
