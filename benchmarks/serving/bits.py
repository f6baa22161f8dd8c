"""Whether every answer has the bits of the image alone, whatever it shares a batch with.

    python -m benchmarks.serving.bits BUNDLE [--images 10000] [--repetitions 1000]

The expected outputs are made in this process, image by image, by the runtime that serves. Then
concurrent clients ask in random sizes and bursts; a fixed image is asked among changing neighbours;
one image is asked 1,000 times under load, across a restart, two processes and two runtimes, and the
distinct answers are counted. Writes results/serving_bits.json; exits with 1 if a bit differs.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.environment import write_result
from benchmarks.serving.servers import asked, raw_request, serving
from deploy.compare.bits import Array
from deploy.compare.validated import validated_outputs
from deploy.runners.runtimes import RunOptions, open_file
from export.bundle import EXACT_MODEL, MODEL, Bundle, open_bundle

RUNTIMES = ("onnxruntime-cpu", "openvino-cpu")
LARGEST = 40


def images_for(bundle: Bundle, number: int) -> Array:
    """Return stored images, and as many more that are mixed from them, so that no two are alike."""
    stored = validated_outputs(bundle).images
    draw = np.random.default_rng(0)
    noise = draw.integers(-12, 13, (number, *stored.shape[1:]))
    mixed = np.clip(stored[draw.integers(0, len(stored), number)].astype(np.int64) + noise, 0, 255).astype(np.uint8)
    mixed[: len(stored)] = stored[:number]
    return mixed


def alone(bundle: Bundle, form: str, runtime: str, images: Array) -> Array:
    """Return the bundle's own output for each image alone, run in this process."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(bundle.read(EXACT_MODEL if form == "exact" else MODEL))
        with open_file(runtime, path, RunOptions(threads=2)) as runner:
            (given,), (result,) = runner.inputs, runner.outputs
            return np.concatenate([runner.run({given.name: image[None]})[result.name] for image in images])


def _random_sizes(number: int) -> Iterator[slice]:
    draw, first = np.random.default_rng(1), 0
    while first < number:
        size = int(draw.choice([1, 1, 1, 2, 3, 7, 16, LARGEST]))
        yield slice(first, min(number, first + size))
        first += size


def _crowd(port: int, name: str, images: Array, expected: Array, seconds: float) -> dict[str, Any]:
    parts = list(_random_sizes(len(images)))
    np.random.default_rng(2).shuffle(parts)
    requests = [raw_request(name, images[part]) for part in parts]
    answers = [expected[part].tobytes() for part in parts]
    rounds: list[dict[str, Any]] = []
    while sum(one["good"] + one["wrong"] for one in rounds) < len(parts):  # until all images were asked for
        done = sum(one["good"] + one["wrong"] for one in rounds) % len(parts)
        turned = requests[done:] + requests[:done], answers[done:] + answers[:done]
        rounds.append(asked(port, *turned, connections=24, seconds=seconds, warm_up=0.0))
    verdicts = [_verdict(one) for one in rounds]
    summed = {key: sum(verdict[key] for verdict in verdicts) for key in verdicts[0]}
    return {"requests": sum(one["good"] + one["wrong"] for one in rounds), "requests_of_all_images": len(parts), **summed}


def _needle(port: int, name: str, images: Array, expected: Array, seconds: float) -> dict[str, Any]:
    """Ask for one image from one connection while 15 others change its neighbours."""
    requests, answers = [], []
    for number in range(16 * 40):
        row = 0 if number % 16 == 0 else 1 + number % (len(images) - 1)
        requests.append(raw_request(name, images[row : row + 1]))
        answers.append(expected[row : row + 1].tobytes())
    found = asked(port, requests, answers, connections=16, seconds=seconds, warm_up=0.0)
    return {"requests": found["good"] + found["wrong"], **_verdict(found)}


def _verdict(found: dict[str, Any]) -> dict[str, Any]:
    assert found["good"] + found["wrong"] > 0, "nothing was compared"
    return {"wrong": found["wrong"], "broken": found["broken"], "refused": found["statuses"].get("503", 0)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=20.0)
    options = parser.parse_args()
    bundle = open_bundle(options.bundle)
    images = images_for(bundle, options.images)
    rows: list[dict[str, Any]] = []
    exact: Array | None = None
    for form in ("exact", "float32"):
        for runtime in RUNTIMES:
            expected = alone(bundle, form, runtime, images)
            if form == "exact":
                same = exact is None or bool((expected.view(np.uint32) == exact.view(np.uint32)).all())
                exact = expected
                rows.append(
                    {"form": form, "runtime": runtime, "check": "the other runtime gives the same bits in this process", "wrong": int(not same)}
                )
            for processes in (1, 2) if form == "exact" else (1,):
                with serving(
                    options.bundle, "--form", form, "--runtime", runtime, "--processes", str(processes), "--max-queue-size", "1000"
                ) as server:
                    for check, run in (("random sizes, 24 clients", _crowd), ("a needle among neighbours", _needle)):
                        row = {"form": form, "runtime": runtime, "processes": processes, "check": check}
                        rows.append({**row, **run(server.port, server.name, images, expected, options.seconds)})
                        print(rows[-1], flush=True)
    wrong = sum(row["wrong"] + row.get("broken", 0) for row in rows)
    print(write_result("serving_bits", {"network": bundle.manifest.network, "images": len(images), "rows": rows, "wrong": wrong}))
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
