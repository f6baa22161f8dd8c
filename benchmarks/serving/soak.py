"""Ten minutes at 70 % of the load that saturates: memory, open files and latency stay flat.

    python -m benchmarks.serving.soak BUNDLE [--minutes 10]

Measures the saturated rate first, then asks at 70 % of it, minute by minute, comparing each answer.
Writes results/serving_soak.json; exits with 1 if an answer was wrong, broken or refused, or if
memory grew by more than 2 % after the first minute.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from benchmarks.environment import write_result
from benchmarks.serving.servers import measured, raw_request, serving
from deploy.compare.validated import validated_outputs
from export.bundle import open_bundle

SHARE = 0.7


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--minutes", type=int, default=10)
    parser.add_argument("--runtime", default="onnxruntime-cpu")
    options = parser.parse_args()
    bundle = open_bundle(options.bundle)
    outputs = validated_outputs(bundle)
    assert outputs.exact is not None
    answers = [row.tobytes() for row in outputs.exact]
    minutes: list[dict[str, Any]] = []
    with serving(options.bundle, "--runtime", options.runtime, "--recheck", "0.001") as server:
        requests = [raw_request(server.name, image[None]) for image in outputs.images]
        peak = measured(server, requests, answers, connections=64, seconds=10.0)
        for minute in range(options.minutes):
            found = measured(server, requests, answers, connections=64, seconds=60.0, rate=SHARE * peak["per_second"], warm_up=0.0)
            minutes.append({**found, "open_files": server.files()})
            print(minute, {key: found[key] for key in ("per_second", "median_ms", "p99_ms", "server_memory", "wrong", "broken")}, flush=True)
    growth = minutes[-1]["server_memory"] / minutes[0]["server_memory"] - 1
    bad = sum(one["wrong"] + one["broken"] + sum(count for status, count in one["statuses"].items() if status != "200") for one in minutes)
    result = {"network": bundle.manifest.network, "peak": peak, "minutes": minutes, "memory_growth": growth, "bad_answers": bad}
    print(write_result("serving_soak", result))
    return int(bad > 0 or growth > 0.02)


if __name__ == "__main__":
    sys.exit(main())
