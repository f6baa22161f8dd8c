"""The figure in docs/principle.md for the chain's errors is that of the result file."""

import json
from pathlib import Path

from documents import prose

ROOT = Path(__file__).parents[2]


def test_the_errors_of_the_runtime_are_those_of_the_result() -> None:
    cases = json.loads((ROOT / "benchmarks" / "results" / "chain_cpu.json").read_bytes())["cases"]
    shares = []
    for case in cases:
        assert case["passed"]
        training, _, *runtimes = (link["error_max"] for link in case["links"])
        assert len(runtimes) == 2
        shares += [error / training for error in runtimes]
    stated = f"was {min(shares):.2f} to {max(shares):.2f} times that of the training graph, over {len(cases)} cases"
    assert stated in prose("principle")
