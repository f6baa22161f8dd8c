"""Turn a network that was trained elsewhere into a run.

Takes a safetensors file and later the graph with its weights. The weights go into the network as it
is written, and a run folder is written for them. Trains nothing.
"""

import json
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import nn

from export.errors import DamagedError, UsageError
from export.files import write_file
from pipeline.config import Config, training_part
from pipeline.data import DataSet
from pipeline.methods import RewrittenGraph
from pipeline.run_folder import RunFolder
from pipeline.training.checkpoint import checkpoint_bytes, write_checkpoint
from pipeline.training.evaluation import BATCH_SIZE, evaluate
from pipeline.training.metrics import Tally
from pipeline.training.step import sgd


@dataclass(frozen=True)
class GivenWeights:
    """A network's trained weights, under the names that the network itself uses."""

    path: Path

    def load_into(self, network: nn.Module) -> None:
        """Load every tensor, or raise an error of one line that names one that does not fit."""
        try:
            network.load_state_dict(self._without_counters(network), strict=True)
        except RuntimeError as error:
            first, *more = str(error).splitlines()[1].strip().split(", ")
            first = ", ".join([first, *more[:2], *([f"and {len(more) - 2} more"] if len(more) > 2 else [])])
            raise UsageError(
                f"{self.path} does not fit the network and the classes of the images: {first}; give the weights of this network"
            ) from error

    def _without_counters(self, network: nn.Module) -> dict[str, torch.Tensor]:
        """Return the tensors, with counters and versions of layers from the network.

        The number of batches that a norm has seen affects no output, and many files leave it out.
        A safetensors file has no versions, and some layers, as MNASNet's, do not load without.
        """
        own = network.state_dict()
        counters = {name: value for name, value in own.items() if name.endswith("num_batches_tracked")}
        tensors = OrderedDict(counters | self._tensors())
        tensors._metadata = own._metadata  # type: ignore[attr-defined]  # where torch keeps the versions
        return tensors

    def _tensors(self) -> dict[str, torch.Tensor]:
        try:
            return safetensors.torch.load(self.path.read_bytes())
        except safetensors.SafetensorError as error:
            how = "save it with safetensors.torch.save_file(network.state_dict(), FILE); pickles are not read, because they run code"
            raise DamagedError(f"{self.path} is not a safetensors file ({error}); {how}") from error


def store_as_run(network: RewrittenGraph, config: Config, data: DataSet, folder: RunFolder) -> float:
    """Write what training writes, as after epoch 0, so that `pipeline export RUN` accepts it too.

    Returns the accuracy on the test images.
    """
    found = evaluate(network.graph, data.test.batches(BATCH_SIZE), data.train.device)
    position: dict[str, object] = {
        "epoch": 0,
        "step": 0,
        "steps_per_epoch": data.train.num_samples // config.data.batch_size // config.training.accumulate,
        "tally": Tally().as_dict(),
        "records": [],
    }
    optimiser = sgd([group for group in network.rules.parameter_groups if group.parameters], config.training)
    folder.store_config(config)
    write_checkpoint(folder.last_checkpoint, checkpoint_bytes(network.graph, optimiser, position, training_part(config)))
    record = {"epoch": 0, "step": 0, "test_loss": found.loss, "test_accuracy": found.accuracy}
    write_file(folder.metrics, (json.dumps(record) + "\n").encode())
    return found.accuracy
