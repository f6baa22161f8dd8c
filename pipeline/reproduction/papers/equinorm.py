"""Defazio, Bottou: Controlling Covariate Shift using Equilibrium Normalization (arXiv 1812.04549).

The full title ends in "of Weights". The paper has no table: these are figures of its text, and
studies whose results are only in a plot.
"""

from collections.abc import Mapping

from pipeline.reproduction.papers.table import CIFAR10, CIFAR100, SVHN, PrintedFigure, Quantity, Row, Table

_METHODS = {"equinorm": "EquiNorm", "batchnorm": "BatchNorm", "groupnorm": "GroupNorm"}
_SINGLE_PASS = "the single-pass form, as in all of the paper's experiments"
_READINGS = {
    "equinorm": f"{_SINGLE_PASS}; the input's mean is not subtracted",
    "batchnorm": "the input normalised by the data set's own mean and deviation: not stated",
    "groupnorm": "32 groups; the paper says size 32, which may mean 32 channels a group",
}
_WHICH_EPOCH = "not stated whether of the best or of the last epoch"
_IN_A_FIGURE = "the result is in a figure alone"


def _row(study: str, name: str, config: str, method: str, accuracy: PrintedFigure | None = None, *notes: str) -> Row:
    printed: Mapping[Quantity, PrintedFigure] = {"accuracy": accuracy} if accuracy else {}
    return Row(
        name=f"{name}-{method}",
        cells=(study, _METHODS[method]),
        config=config,
        printed=printed,
        reading=_READINGS[method],
        notes=notes if accuracy else (*notes, _IN_A_FIGURE),
        panel=study,
    )


_QUARTER, _THIRTY, _PREACT = "wide ResNet, statistics of the first quarter", "wide ResNet, 30 epochs", "pre-activation ResNet-152, manifold mixup"
_JUMP = "the momentum jumps from 0.95 to 0.85 behind epoch 26, as stated"
CIFAR10_TABLE = Table(
    name="equinorm-cifar10",
    title="EquiNorm: CIFAR-10",
    images=CIFAR10,
    columns=("study", "method"),
    quantities=("accuracy",),
    num_runs=10,
    runs_stated=True,
    statistic="median and quartiles",
    which_epoch=_WHICH_EPOCH,
    rows=(
        _row(_QUARTER, "wrn20", "cifar10/equinorm-wrn20.yaml", "equinorm", PrintedFigure("95.8")),
        _row(_QUARTER, "wrn20", "cifar10/batchnorm-wrn20.yaml", "batchnorm", PrintedFigure("94.7"), "statistics of the whole batch"),
        _row(_THIRTY, "wrn20-30epochs", "cifar10/equinorm-wrn20-30epochs.yaml", "equinorm", PrintedFigure("94.0", "0.22"), _JUMP),
        _row(_THIRTY, "wrn20-30epochs", "cifar10/batchnorm-wrn20-30epochs.yaml", "batchnorm", PrintedFigure("93.3", "0.77"), _JUMP),
        _row(_PREACT, "preactresnet152", "cifar10/equinorm-preactresnet152.yaml", "equinorm"),
        _row(_PREACT, "preactresnet152", "cifar10/batchnorm-preactresnet152.yaml", "batchnorm"),
    ),
    notes=(
        "300 epochs are implied by drops at 150 and 225.",
        "Where manifold mixup mixes is not stated: here at the images or where images become smaller, as in that method's code.",
    ),
)
CIFAR100_TABLE = Table(
    name="equinorm-cifar100",
    title="EquiNorm: CIFAR-100, pre-activation ResNet-152",
    images=CIFAR100,
    columns=("study", "method"),
    quantities=("accuracy",),
    num_runs=10,
    runs_stated=True,
    statistic="median and quartiles",
    which_epoch=_WHICH_EPOCH,
    rows=(
        _row(_PREACT, "preactresnet152", "cifar100/equinorm-preactresnet152.yaml", "equinorm"),
        _row(_PREACT, "preactresnet152", "cifar100/batchnorm-preactresnet152.yaml", "batchnorm"),
    ),
    notes=("The text says: equal at the end, EquiNorm faster in early epochs.",),
)
_HOUSE_NUMBERS = "wide ResNet, manifold mixup"
SVHN_TABLE = Table(
    name="equinorm-svhn",
    title="EquiNorm: SVHN with its extra images",
    images=SVHN,
    columns=("study", "method"),
    quantities=("accuracy",),
    num_runs=10,
    runs_stated=True,
    statistic="median and quartiles",
    which_epoch=_WHICH_EPOCH,
    rows=(
        _row(_HOUSE_NUMBERS, "wrn20", "svhn/equinorm-wrn20.yaml", "equinorm"),
        _row(_HOUSE_NUMBERS, "wrn20", "svhn/batchnorm-wrn20.yaml", "batchnorm"),
        _row(_HOUSE_NUMBERS, "wrn20", "svhn/groupnorm-wrn20.yaml", "groupnorm"),
    ),
    notes=(
        "The text says: EquiNorm as BatchNorm, GroupNorm inferior.",
        "160 epochs are assumed; the paper states drops at 80 and 120.",
        "Two GPUs of 128 images each, with statistics of their own, are two batches a step here.",
    ),
)
TABLES = (CIFAR10_TABLE, CIFAR100_TABLE, SVHN_TABLE)
