"""Three verifiers on one corpus of planted faults and harmless changes.

    python -m benchmarks.verifiers
    python -m benchmarks.verifiers --table

They are samegraph, Polygraphy's comparator and torch.onnx's verification, each used as its own
documentation says, and Polygraphy also on our samples. Everything is repeated on networks whose
logits are 2^10 times as large and as small. Needs `pip install polygraphy` in addition to the
project.
"""

import argparse
import contextlib
import io
import json
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir
import torch
from torch.onnx.verification import verify_onnx_program

from benchmarks.corpus import FAULTS, HARMLESS, UNCOMPARABLE, Case, Network, Weights, images, network, renamed, trained_weights
from benchmarks.environment import RESULTS, write_result
from deploy.verify.pair import verify_pair
from deploy.verify.request import PairRequest
from export.errors import UsageError

SCALES = (0, 10, -10)
"""The scales of the logits, as powers of two."""
FEW, MANY = 64, 10_000
TORCH_MOST_ABSOLUTE, TORCH_MOST_RELATIVE = 5e-3, 1e-1
"""Thresholds of torch.onnx's exporter, which calls them arbitrary; it warns when they are
reached."""


@dataclass(frozen=True)
class Bench:
    """The reference and the samples, on disk and in memory."""

    folder: Path
    scale: int

    @property
    def weights(self) -> Weights:
        return trained_weights(scale=2.0**self.scale)

    @property
    def reference(self) -> Path:
        return self.folder / "reference.onnx"

    def samples(self, case: Case) -> np.ndarray:
        return images(MANY if case.needs_many else FEW)


def samegraph(bench: Bench, candidate: Path, samples: np.ndarray) -> dict[str, object]:
    """Return the verdict with the derived budget, and the place if there is one."""
    np.savez(bench.folder / "samples.npz", image=samples)
    try:
        verdict = verify_pair(PairRequest(reference=bench.reference, candidate=candidate, samples=str(bench.folder / "samples.npz"), batch_size=256))
    except UsageError as error:
        return {"found": True, "refused": str(error)}
    (link,) = verdict.links
    place = link.place
    return {"found": not verdict.passed, "layer": place.layer if place else None, "max_abs": link.max_abs}


def polygraphy(bench: Bench, candidate: Path, samples: np.ndarray | None) -> dict[str, object]:
    """Run its comparator with its own tolerance of 1e-5, on one random batch of its own or on our
    samples."""
    from polygraphy.backend.onnxrt import OnnxrtRunner, SessionFromOnnx
    from polygraphy.comparator import Comparator, CompareFunc
    from polygraphy.logger import G_LOGGER

    G_LOGGER.module_severity = {"": G_LOGGER.ULTRA_VERBOSE + 100}
    runners = [OnnxrtRunner(SessionFromOnnx(str(path), providers=["cpu"])) for path in (bench.reference, candidate)]
    given: dict[str, Any] = {} if samples is None else {"data_loader": [{"image": samples}]}
    results = Comparator.run(runners, **given)
    return {"found": not bool(Comparator.compare_accuracy(results, compare_func=CompareFunc.simple()))}


@cache
def exported(scale: int) -> torch.onnx.ONNXProgram:
    """Return the network in PyTorch, exported; the files under test replace its model."""
    batch = torch.export.Dim("batch", min=1)
    example = torch.from_numpy(images(2))
    network_in_torch = Network(trained_weights(scale=2.0**scale))
    program = torch.onnx.export(network_in_torch, (example,), dynamo=True, opset_version=20, verbose=False, dynamic_shapes=({0: batch},))
    assert program is not None
    return program


def torch_onnx(bench: Bench, candidate: Path, samples: np.ndarray) -> dict[str, object]:
    """Do what the exporter does with verify=True, on our samples: warn beyond its two
    thresholds."""
    program = exported(bench.scale)
    program.release()  # otherwise it would keep using the session of the earlier model
    program.model = onnx_ir.from_proto(onnx.load(candidate))
    found = verify_onnx_program(program, (torch.from_numpy(samples),))
    most = [(each.max_abs_diff, each.max_rel_diff) for each in found]
    warned = any(absolute >= TORCH_MOST_ABSOLUTE or relative >= TORCH_MOST_RELATIVE for absolute, relative in most)
    return {"found": warned, "max_abs": most[0][0]}


def quietly(run: Callable[[], dict[str, object]]) -> dict[str, object]:
    """Run without the tools' own output.

    A tool that stops has said nothing about the outputs.
    """
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        try:
            return run()
        except Exception as error:
            return {"found": None, "stopped": f"{type(error).__name__}: {error}"[:200]}
        finally:
            logging.disable(logging.NOTSET)


def row(bench: Bench, case: Case, model: onnx.ModelProto) -> dict[str, object]:
    candidate = bench.folder / "candidate.onnx"
    onnx.save(model, candidate)
    samples = bench.samples(case)
    return {
        "case": case.name,
        "kind": "fault" if case in FAULTS else "cannot be compared" if case in UNCOMPARABLE else "harmless",
        "logits": f"2^{bench.scale}",
        "layer": case.layer,
        "samples": len(samples),
        "samegraph": quietly(lambda: samegraph(bench, candidate, samples)),
        "polygraphy": quietly(lambda: polygraphy(bench, candidate, None)),
        "polygraphy on these samples": quietly(lambda: polygraphy(bench, candidate, samples)),
        "torch.onnx": quietly(lambda: torch_onnx(bench, candidate, samples)),
    }


def rows_at(scale: int) -> Iterator[dict[str, object]]:
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), scale)
        onnx.save(network(bench.weights), bench.reference)
        for case in (*FAULTS, *UNCOMPARABLE, *HARMLESS):
            yield row(bench, case, case.model(bench.weights))
        yield row(bench, Case("other names inside", None), renamed(network(bench.weights)))


TOOLS = {"samegraph": "samegraph", "polygraphy": "Polygraphy", "polygraphy on these samples": "Polygraphy, our samples", "torch.onnx": "torch.onnx"}


def table(result: Mapping[str, Any]) -> str:
    """Return the Markdown table for docs/verifying.md.

    It shows what each tool said of each case, at logits of the usual size, 2^10 times as large, and
    2^10 times as small.
    """
    rows = {(each["case"], each["logits"]): each for each in result["rows"]}
    kinds = {each["case"]: each["kind"] for each in result["rows"]}
    lines = [f"| | {' | '.join(TOOLS.values())} |", f"|---|{'---|' * len(TOOLS)}"]
    for kind in ("fault", "cannot be compared", "harmless"):
        lines.append(f"| **{kind}** |{' |' * len(TOOLS)}")
        for case in (name for name, of in kinds.items() if of == kind):
            cells = (" ".join(_said(rows[case, f"2^{scale}"], tool) for scale in SCALES) for tool in TOOLS)
            lines.append(f"| {case} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _said(found: Mapping[str, Any], tool: str) -> str:
    """Return right or wrong; if a fault was found and its place is known, also whether the place is
    right."""
    said = found[tool]["found"]
    right = said is (found["kind"] != "harmless")
    if tool == "samegraph" and found["kind"] == "fault":
        right = right and found[tool]["layer"] == found["layer"]
    return "✓" if right else "stopped" if said is None else "✗"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--table", action="store_true", help="print the table of the last result, and run nothing")
    if parser.parse_args().table:
        print(table(json.loads((RESULTS / "verifiers.json").read_text())))
        return
    rows = []
    for scale in SCALES:
        for each in rows_at(scale):
            rows.append(each)
            print(each, flush=True)
    versions = {name: metadata.version(name) for name in ("polygraphy", "torch", "onnxruntime-gpu")}
    print(write_result("verifiers", {"versions": versions, "rows": rows}))


if __name__ == "__main__":
    main()
