"""Train a rewritten network: loop, optimiser, schedules, checkpoints, metrics.

Knows no method and no network.
"""

from pipeline.training.checkpoint import Checkpoint, load_checkpoint, read_checkpoint
from pipeline.training.device import autocast_type, device_by_name
from pipeline.training.finite import NotFiniteError
from pipeline.training.loop import History, Settings, require_same_steps, steps_per_epoch, train
from pipeline.training.metrics import EpochRecord
from pipeline.training.protocols import EpochLines, SilentWatcher, TrainingData, Watcher

__all__ = [
    "Checkpoint",
    "EpochLines",
    "EpochRecord",
    "History",
    "NotFiniteError",
    "Settings",
    "SilentWatcher",
    "TrainingData",
    "Watcher",
    "autocast_type",
    "device_by_name",
    "load_checkpoint",
    "read_checkpoint",
    "require_same_steps",
    "steps_per_epoch",
    "train",
]
