"""How near a server comes to the bare loop over full batches; overload; what it adds when idle.

    python -m benchmarks.serving.throughput BUNDLE [--rounds 5] [--seconds 5]

Interleaved rounds of: the runtime's own loop in a process (no server), the server saturated with
one-image requests, the server at four times that rate, and one client that asks now and then.
Writes results/serving_throughput.json.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.environment import write_result
from benchmarks.serving.servers import measured, raw_request, serving
from deploy.compare.validated import validated_outputs
from deploy.runners.runtimes import RunOptions, open_file
from export.bundle import EXACT_MODEL, open_bundle

BATCH = 64
IDLE_RATE = 20.0
OVERLOAD = 4
"""Requests a second of the client that asks now and then."""


def loop(bundle: Path, runtime: str, seconds: float) -> dict[str, float]:
    """Run full batches, and single images, one after the other in this process."""
    opened = open_bundle(bundle)
    images = validated_outputs(opened).images
    full = np.resize(images, (BATCH, *images.shape[1:]))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(opened.read(EXACT_MODEL))
        with open_file(runtime, path, RunOptions(threads=2)) as runner:
            name = runner.inputs[0].name
            for _ in range(3):
                runner.run({name: full})
            batches, until = 0, time.perf_counter() + seconds
            before = resource.getrusage(resource.RUSAGE_SELF)
            while time.perf_counter() < until:
                runner.run({name: full})
                batches += 1
            after = resource.getrusage(resource.RUSAGE_SELF)
            singles = []
            for _ in range(60):
                time.sleep(1 / IDLE_RATE)  # as the idle server is asked: caches and threads are cold
                started = time.perf_counter()
                runner.run({name: full[:1]})
                singles.append(time.perf_counter() - started)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"per_second": batches * BATCH / seconds, "cpu_us_an_image": 1e6 * cpu / (batches * BATCH), "single_ms": 1e3 * statistics.median(singles)}


def _in_a_process(bundle: Path, runtime: str, seconds: float) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.serving.throughput", str(bundle), "--runtime", runtime, "--loop", str(seconds)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def _round(bundle: Path, runtime: str, seconds: float) -> dict[str, Any]:
    opened = validated_outputs(open_bundle(bundle))
    assert opened.exact is not None
    bare = _in_a_process(bundle, runtime, seconds)
    options = ("--runtime", runtime, "--max-batch-size", str(BATCH), "--max-queue-size", str(2 * BATCH))
    with serving(bundle, *options) as server:
        requests = [raw_request(server.name, image[None]) for image in opened.images]
        answers = [row.tobytes() for row in opened.exact]
        idle = measured(server, requests, answers, connections=1, seconds=min(seconds, 3.0), rate=IDLE_RATE)
        full = measured(server, requests, answers, connections=2 * BATCH, seconds=seconds)
        memory = server.memory()
        over = measured(server, requests, answers, connections=8 * BATCH, seconds=seconds, rate=OVERLOAD * full["per_second"])
        return {"loop": bare, "idle": idle, "saturated": full, "overload": over, "memory_growth_in_overload": server.memory() - memory}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--runtime", default="onnxruntime-cpu")
    parser.add_argument("--loop", type=float, help="Only the loop, for so many seconds, as JSON.")
    options = parser.parse_args()
    if options.loop is not None:
        print(json.dumps(loop(options.bundle, options.runtime, options.loop)))
        return
    rounds = []
    for _ in range(options.rounds):
        rounds.append(_round(options.bundle, options.runtime, options.seconds))
        assert not any(rounds[-1][part]["wrong"] for part in ("idle", "saturated", "overload"))
        print(
            {
                part: found
                if not isinstance(found, dict)
                else {
                    key: found.get(key)
                    for key in ("per_second", "median_ms", "p99_ms", "single_ms", "client_cpu_seconds", "server_cpu_us", "statuses")
                }
                for part, found in rounds[-1].items()
            },
            flush=True,
        )
    cores = 2

    def counted_apart(one: dict[str, Any]) -> float:
        """Return images a second of the cores' time that the client did not take."""
        left = cores * one["seconds"] - one["client_cpu_seconds"]
        return float(one["good"] / left * cores)

    ratios = {
        "saturated / loop": [one["saturated"]["per_second"] / one["loop"]["per_second"] for one in rounds],
        "saturated / loop, the client's time counted apart": [counted_apart(one["saturated"]) / one["loop"]["per_second"] for one in rounds],
        "overload / saturated": [one["overload"]["per_second"] / one["saturated"]["per_second"] for one in rounds],
        "overload / saturated, the client's time counted apart": [counted_apart(one["overload"]) / counted_apart(one["saturated"]) for one in rounds],
        "added when idle, ms": [one["idle"]["median_ms"] - one["loop"]["single_ms"] for one in rounds],
    }
    figures = {name: {"median": statistics.median(values), "least": min(values), "most": max(values)} for name, values in ratios.items()}
    network = open_bundle(options.bundle).manifest.network
    print(
        write_result(
            f"serving_throughput_{options.runtime.partition('-')[0]}",
            {"network": network, "runtime": options.runtime, "figures": figures, "rounds": rounds},
        )
    )
    for name, figure in figures.items():
        print(name, {key: round(value, 3) for key, value in figure.items()})


if __name__ == "__main__":
    main()
