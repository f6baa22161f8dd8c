"""A float network of any origin becomes a run: its weights as a checkpoint before the first step, its accuracy as the first record.

Takes a config and a safetensors file of the network's own state; leaves a run folder that every command takes like a trained one.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from pydantic import JsonValue
from torch import nn

from export.errors import DamagedError, UsageError
from export.files import write_file
from pipeline.assemble import ImageFacts, training_graph
from pipeline.config import Config, dump_config
from pipeline.data import DataSet
from pipeline.training.checkpoint import checkpoint_bytes, write_checkpoint
from pipeline.training.evaluation import BATCH_SIZE, evaluate
from pipeline.training.loop import last_checkpoint
from pipeline.training.metrics import Tally
from pipeline.training.step import sgd


@dataclass(frozen=True)
class Origin:
    """A network's trained weights, under the names that the network itself has for them."""

    path: Path

    def load_into(self, network: nn.Module) -> None:
        """Every tensor, or one line that says which does not fit."""
        try:
            network.load_state_dict(self._without_counters(network), strict=True)
        except RuntimeError as error:
            first, *more = str(error).splitlines()[1].strip().split(", ")
            first = ", ".join([first, *more[:2], *([f"and {len(more) - 2} more"] if len(more) > 2 else [])])
            raise UsageError(
                f"{self.path} does not fit the network and the classes of the images: {first}; give the weights of this network"
            ) from error

    def _without_counters(self, network: nn.Module) -> dict[str, torch.Tensor]:
        """How many batches a norm has seen matters to no output, and many files leave it out."""
        counters = {name: value for name, value in network.state_dict().items() if name.endswith("num_batches_tracked")}
        return counters | self._tensors()

    def _tensors(self) -> dict[str, torch.Tensor]:
        if not self.path.is_file():
            raise UsageError(f"{self.path} is not a file; give a safetensors file with the network's weights")
        try:
            return safetensors.torch.load(self.path.read_bytes())
        except safetensors.SafetensorError as error:
            how = "save it with safetensors.torch.save_file(network.state_dict(), FILE); pickles are not read, because they run code"
            raise DamagedError(f"{self.path} is not a safetensors file ({error}); {how}") from error


def import_run(config: Config, data: DataSet, origin: Origin, folder: Path) -> float:
    """Write the run folder, and return the accuracy that the network has on the test images."""
    facts = ImageFacts((data.channels, data.height, data.width), len(data.classes), data.normalisation.mean, data.normalisation.std)
    network = training_graph(config, facts, origin.load_into)
    graph = network.graph.to(data.train.device)
    found = evaluate(graph, data.test.batches(BATCH_SIZE), data.train.device)
    position: dict[str, object] = {
        "epoch": 0,
        "step": 0,
        "steps_per_epoch": data.train.num_samples // config.data.batch_size // config.training.accumulate,
        "tally": Tally().as_dict(),
        "records": [],
    }
    optimiser = sgd([group for group in network.rules.parameter_groups if group.parameters], config.training)
    folder.mkdir(parents=True, exist_ok=True)
    write_checkpoint(last_checkpoint(folder), checkpoint_bytes(graph, optimiser, position, training_part(config)))
    record = {"epoch": 0, "step": 0, "test_loss": found.loss, "test_accuracy": found.accuracy}
    write_file(folder / "metrics.jsonl", (json.dumps(record) + "\n").encode())
    write_file(folder / "config.yaml", dump_config(config).encode())
    return found.accuracy


def training_part(config: Config) -> dict[str, JsonValue]:
    """What a checkpoint depends on; what is exported and verified may change from one call of a command to the next."""
    return config.model_dump(mode="json", include={"data", "network", "method", "training"})
