"""Peak memory of a training step of every method, against batchnorm.

    python -m benchmarks.memory [--batch 128] [--networks resnet18 shufflenetv2_x1_0]
        [--methods ...]

Batch 128, on ResNet-18 and ShuffleNetV2 (forms for small images). Allocated bytes, float32, CPU
(`benchmarks/measured_step.py`). Each method has its default options; weightnorm is also run without
dropout. A pair that is refused is listed with the reason. Writes results/memory.json with the
ratios and what the papers claim, and prints a table.
"""

import argparse
import json
from typing import Any

from pydantic import TypeAdapter

from benchmarks.environment import write_result
from benchmarks.measured_step import NOT_COUNTED, measured_step
from export.errors import UsageError
from pipeline.config.methods import MethodOptions
from pipeline.methods import METHODS
from pipeline.reproduction.papers import TABLES, Row
from pipeline.training.device import arithmetic

NETWORKS = {"resnet18": "ResNet18", "shufflenetv2_x1_0": "ShuffleNetV2"}
"""Name -> its name in MimicNorm's Table 1."""
BASELINE, WITHOUT_DROPOUT = "batchnorm", "weightnorm-without-dropout"
OPTIONS: dict[str, dict[str, object]] = {method: {"name": method} for method in METHODS}
OPTIONS[WITHOUT_DROPOUT] = {"name": "weightnorm", "dropout": 0.0}
"""Options by name. weightnorm has dropout by default, which keeps a mask and an output for each."""
OF_GAUR = {BASELINE: "batchnorm", WITHOUT_DROPOUT: "weight-norm", "weightnorm": "clip-dropout"}
"""Name -> row of Gaur et al., Table 7."""

Results = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--methods", nargs="+", choices=OPTIONS, default=list(OPTIONS))
    options = parser.parse_args()
    methods = dict.fromkeys([BASELINE, *options.methods])
    with arithmetic(deterministic=False):
        measured = {network: {method: _measured(network, method, options.batch) for method in methods} for network in options.networks}
    results = {network: {"methods": _with_ratios(each), "claims": _claims(network)} for network, each in measured.items()}
    what = f"peak of a training step, batch {options.batch}, float32, channels_last, CPU"
    print(write_result("memory", {"what": what, "memory": NOT_COUNTED, "results": results}))
    print(_table(results))


def _measured(network: str, method: str, batch: int) -> Results:
    options: MethodOptions = TypeAdapter(MethodOptions).validate_python(OPTIONS[method])
    try:
        found: Results = dict(measured_step(network, options, batch, None).peak_bytes())
    except UsageError as error:
        found = {"refused": str(error)}
    print(json.dumps({"network": network, "method": method, **found}), flush=True)
    return found


def _with_ratios(measured: dict[str, Results]) -> dict[str, Results]:
    baseline = measured[BASELINE]["peak"]
    return {method: each if "refused" in each else each | {"over_batchnorm": round(each["peak"] / baseline, 4)} for method, each in measured.items()}


def _claims(network: str) -> list[Results]:
    """Return what the papers print for this network: of the whole process, with other batches and
    image sizes."""
    mimicnorm = [row for row in TABLES["mimicnorm-table1"].rows if row.cells[0] == NETWORKS[network] and not row.by_name_only]
    claims = [_claim("MimicNorm, Table 1: CIFAR-100, batch 256, nvidia-smi", {row.cells[1].lower(): row for row in mimicnorm})]
    if network == "resnet18":
        gaur = {row.name: row for row in TABLES["gaur-table7"].rows}
        claims.append(_claim("Gaur et al., Table 7: ImageNet, batch not stated", {method: gaur[name] for method, name in OF_GAUR.items()}))
    return claims


def _claim(where: str, rows: dict[str, Row]) -> Results:
    memory = {method: float(row.printed["memory"].value) for method, row in rows.items()}
    return {"of": where, "printed": memory, "over_batchnorm": {method: round(value / memory[BASELINE], 4) for method, value in memory.items()}}


def _table(results: dict[str, Results]) -> str:
    lines = [f"{'network':18} {'method':27} {'peak MiB':>9} {'/ batchnorm':>11}  papers"]
    for network, result in results.items():
        for method, each in result["methods"].items():
            papers = [f"{claim['over_batchnorm'][method]:.3f}" for claim in result["claims"] if method in claim["over_batchnorm"]]
            figures = "refused" if "refused" in each else f"{each['peak'] / 2**20:9.1f} {each['over_batchnorm']:11.3f}"
            lines.append(f"{network:18} {method:27} {figures:21}  {', '.join(papers)}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
