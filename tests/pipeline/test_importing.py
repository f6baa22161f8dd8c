"""Weights from elsewhere go into the network as it is written."""

from pathlib import Path

import safetensors.torch
import torch
import torchvision

from pipeline.importing import GivenWeights


def test_layers_that_ask_for_their_version_are_loaded(tmp_path: Path) -> None:
    """A safetensors file has no versions of layers; MNASNet takes none for version 1 and fails."""
    torch.manual_seed(0)
    trained, network = (torchvision.models.mnasnet0_5(num_classes=3) for _ in range(2))
    safetensors.torch.save_file(trained.state_dict(), tmp_path / "weights.safetensors")
    GivenWeights(tmp_path / "weights.safetensors").load_into(network)
    for name, value in trained.state_dict().items():
        assert torch.equal(network.state_dict()[name], value), name
