"""Data sets: labelled uint8 images in a training and a test split, in batches on the device.

`open_data` returns a `DataSet`; `TrainingBatches` shuffles and augments its training split.
"""

from pipeline.data.batches import TrainingBatches
from pipeline.data.dataset import Batch, DataSet, Normalisation, Progress, Split, silent
from pipeline.data.preparation import open_data

__all__ = ["Batch", "DataSet", "Normalisation", "Progress", "Split", "TrainingBatches", "open_data", "silent"]
