"""What the exact grid costs in accuracy: float32, after calibration, and after training on the
grid.

    python -m benchmarks.exact_accuracy --data DIR [--methods czmig mimicnorm batchnorm]
        [--seeds 1] [--runs FOLDER] [--set key.path=value ...]

DIR holds train/CLASS/*.jpg and test/CLASS/*.jpg (the JPEG copy of CIFAR-10). Each method trains by
its file in configs/, then goes through `pipeline train-export`. A run that exists in
FOLDER/METHOD-SEED is continued or only read (benchmarks.learning trains the same runs). The result
also has the room that the certificate leaves, and how much of it comes from the signs of the
weights. Writes results/exact_accuracy.json.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.environment import write_result

CONFIGS = Path(__file__).parents[1] / "configs" / "cifar10"
TARGETS = {"points lost after training on the grid": 0.2, "points lost at once": 0.5}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--methods", nargs="+", default=["czmig", "mimicnorm", "batchnorm"])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--runs", type=Path, default=Path("runs") / "exact_accuracy")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY.PATH=VALUE")
    options = parser.parse_args()
    rows = [_row(method, seed, options) for method in options.methods for seed in range(options.seeds)]
    print(write_result("exact_accuracy", {"network": "resnet20", "data": "CIFAR-10 as JPEG", "targets": TARGETS, "runs": rows}))


def _row(method: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    config, folder = CONFIGS / f"{method}-resnet20-6epochs.yaml", options.runs / f"{method}-{seed}"
    settings = [f"data.root={options.data}", f"training.seed={seed}", *options.overrides]
    given = [word for setting in settings for word in ("--set", setting)]
    command = [sys.executable, "-m", "pipeline", "train-export", str(config), *given, "--out", str(folder), "--json"]
    if not (folder / "bundle").is_dir():
        subprocess.run(command, stdout=subprocess.PIPE, check=True)
    verification = json.loads((folder / "bundle" / "verification.json").read_bytes())
    facts = json.loads((folder / "bundle" / "manifest.json").read_bytes())["metrics"]
    exact = facts["exact"]
    exact_links = [link for link in verification["links"] if link["from"].startswith("exact")]
    row = {
        "method": method,
        "seed": seed,
        "float32": facts["test_accuracy"],
        "exact_at_once": exact["test_accuracy_at_once"],
        "exact": exact["test_accuracy"],
        "points_lost_at_once": round(100 * (facts["test_accuracy"] - exact["test_accuracy_at_once"]), 2),
        "points_lost": round(100 * (facts["test_accuracy"] - exact["test_accuracy"]), 2),
        "epochs_on_the_grid": exact["epochs"],
        "verdict": verification["verdict"],
        "samples": verification["samples"]["count"],
        "room_bits": _room(folder / "bundle" / "certificate.json"),
        "exact_links": {f"{link['from']} -> {link['to']}": _said(link) for link in exact_links},
    }
    print(json.dumps(row), flush=True)
    return row


def _said(link: dict[str, Any]) -> str:
    return str(link["status"]) if link["status"] == "not run" else f"{link['status']}, max_ulp {link['max_ulp']}"


def _room(path: Path) -> dict[str, float]:
    """Return the bits up to 2^24 over the layers, and how many of them a bound without signs would
    miss."""
    layers = json.loads(path.read_bytes())["layers"]
    gains = [layer["headroom_bits"] - layer["plain_headroom_bits"] for layer in layers]
    return {"least": round(min(layer["headroom_bits"] for layer in layers), 3), "mean_gain_of_signs": round(statistics.mean(gains), 3)}


if __name__ == "__main__":
    main()
