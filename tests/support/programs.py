"""Small torch.export programs for tests, and their files."""

import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

BATCH = torch.export.Dim("batch", min=1)


class TwoEnds(nn.Module):
    """Two inputs of two dtypes, free sizes, three outputs of three dtypes. Nothing is an image."""

    scale: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(8, 4)
        self.inner = nn.Linear(4, 3)
        self.register_buffer("scale", torch.tensor([0.1, 0.2, 0.3]))

    def forward(self, tokens: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        found = torch.tanh(self.inner(self.table(tokens))) * mask.unsqueeze(-1)
        scores = found.sum(dim=1).to(torch.float32) * self.scale
        return scores, scores.argmax(dim=1), found > 0


class SmallNet(nn.Module):
    """Convolution, norm, pooling and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.second = nn.Conv2d(6, 6, 3, padding=1)
        self.classifier = nn.Linear(6, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.conv(x)))
        x = torch.relu(self.second(x) + x)
        logits: torch.Tensor = self.classifier(x.mean(dim=(2, 3)))
        return logits


def small_net(change: Callable[[SmallNet], object] = lambda net: None) -> SmallNet:
    """A network with the same weights each time, except for the change."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = SmallNet()
        net.norm.running_mean.normal_()  # type: ignore[union-attr]
        net.norm.running_var.uniform_(0.5, 2.0)  # type: ignore[union-attr]
        change(net)
    return net.eval()


def exported(net: nn.Module) -> torch.export.ExportedProgram:
    """A network on 3 x 8 x 8 images, with a free batch."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.export.export(net, (torch.zeros(2, 3, 8, 8),), dynamic_shapes=({0: BATCH},))


def exported_two_ends() -> torch.export.ExportedProgram:
    length = torch.export.Dim("length", min=1)
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        example = torch.zeros(2, 5, dtype=torch.int64), torch.ones(2, 5)
        return torch.export.export(TwoEnds().eval(), example, dynamic_shapes=({0: BATCH, 1: length}, {0: BATCH, 1: length}))


def write_program(path: Path, program: torch.export.ExportedProgram) -> Path:
    torch.export.save(program, path)
    return path


def write_onnx_of(path: Path, program: torch.export.ExportedProgram, *, optimize: bool = True) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = torch.onnx.export(program, dynamo=True, opset_version=20, external_data=False, verbose=False, optimize=optimize)
    assert found is not None
    found.save(path)
    return path
