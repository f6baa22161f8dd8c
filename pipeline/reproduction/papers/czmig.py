"""Ruff, Beck, Bach: Mean Shift Rejection (arXiv 1911.13173).

Its one table.
"""

from pipeline.reproduction.papers.table import CIFAR10, PrintedFigure, Row, Table

_PAPERS = (
    "the paper's: grad - z mean(grad), a first layer that does not start at zero mean; biases and classifier at a quarter of the rate, as in the code"
)
_NO_CORRECTION = "the paper's: no correction of gradients (z = 0)"


def _czmig(rate: str, z: str, noise: str, accuracy: PrintedFigure, *notes: str, label: str = "CZMIG") -> Row:
    return Row(
        name=f"czmig-{rate}-z{z}-noise{noise}",
        cells=(label, rate, z, noise),
        config="cifar10/czmig-resnet110.yaml",
        overrides=(f"training.learning_rate={rate}", f"method.zmg={z}", f"method.noise={noise}"),
        printed={"accuracy": accuracy},
        reading=_PAPERS,
        notes=notes,
        panel="With noise" if noise != "0" else "Without noise",
    )


def _czmi(rate: str, noise: str, accuracy: PrintedFigure, *notes: str) -> Row:
    return Row(
        name=f"czmi-{rate}-noise{noise}",
        cells=("CZMI", rate, "0", noise),
        config="cifar10/czmi-resnet110.yaml",
        overrides=(f"training.learning_rate={rate}", f"method.noise={noise}"),
        printed={"accuracy": accuracy},
        reading=_NO_CORRECTION,
        notes=notes,
        panel="With noise" if noise != "0" else "Without noise",
    )


_HIGHER_RATES = "the text says that CZMI is best at 0.4, which is so with noise only: without, the table has the opposite order"
TABLE_1 = Table(
    name="czmig-table1",
    title="Mean Shift Rejection, Table 1: CIFAR-10, ResNet-110",
    images=CIFAR10,
    columns=("method", "rate", "z", "noise"),
    quantities=("accuracy",),
    num_runs=8,
    runs_stated=True,
    which_epoch="not stated whether of the best or of the last epoch; the code keeps the best on the test images",
    rows=(
        _czmig("0.4", "0.85", "0.1", PrintedFigure("94.03", "0.14")),
        Row(
            name="batchnorm",
            cells=("BatchNorm", "0.1", "0", "0"),
            config="cifar10/batchnorm-resnet110.yaml",
            printed={"accuracy": PrintedFigure("93.70", "0.55")},
            panel="With noise",
        ),
        _czmig("0.4", "0.98", "0.1", PrintedFigure("93.64", "0.11")),
        _czmig("0.4", "0.85", "0", PrintedFigure("93.57", "0.12"), "the text puts the gain by noise at 0.33 and at 0.46; the table's is 0.46"),
        _czmig("0.2", "0.85", "0", PrintedFigure("93.44", "0.18")),
        _czmi("0.4", "0.1", PrintedFigure("93.33", "0.11")),
        _czmi("0.1", "0", PrintedFigure("93.06", "0.22"), _HIGHER_RATES),
        _czmi("0.2", "0", PrintedFigure("92.95", "0.23"), _HIGHER_RATES),
        _czmi("0.4", "0", PrintedFigure("92.13", "0.26"), _HIGHER_RATES),
        _czmig("0.1", "0.85", "0", PrintedFigure("92.95", "0.20")),
        _czmig(
            "0.1",
            "1",
            "0.1",
            PrintedFigure("91.03", "0.25"),
            "printed as CZMI, which has z = 0; with z = 1 it must be CZMIG, and is run as that",
            "rate 0.1, because a higher one diverges with z = 1, says the text; its Figure 3 says 0.4",
            label='"CZMI", must be CZMIG',
        ),
        Row(
            name="czmig-code",
            cells=("CZMIG, the code's stored run", "0.4", "0.9", "0.1"),
            config="cifar10/czmig-resnet110-code.yaml",
            reading="the code's: grad + z (grad - mean(grad)), a first layer that starts at zero mean",
            notes=("not in the table: the command line that is stored with the code",),
            panel="With noise",
            by_name_only=True,
        ),
    ),
    notes=(
        "The paper says that rows descend in accuracy; they do not.",
        "The protocol names an initial rate of 0.1; the table's are those of its column.",
        "Augmentation is flips and crops, as in the code; the text says random scaling and flips.",
    ),
)
TABLES = (TABLE_1,)
