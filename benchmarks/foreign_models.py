"""Real networks that this project did not train: torchvision's, exported by torch.onnx.

They are exported with and without its optimiser.

    python -m benchmarks.foreign_models

For each there is the verdict within the derived budget. Then one layer after the other is made
twice as large, and that verdict must be a failure.
"""

import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import torch
import torchvision
from onnx import numpy_helper
from torch import nn

from benchmarks.environment import write_result
from deploy.verify.pair import verify_pair
from deploy.verify.request import PairRequest
from deploy.verify.verdict import Verdict

NETWORKS = ("resnet18", "resnet50", "mobilenet_v2", "shufflenet_v2_x0_5", "squeezenet1_1", "vgg11_bn", "densenet121", "efficientnet_b0")
SIZE, NUM_SAMPLES, NUM_WRONG = 64, 16, 3


def perturbed(name: str) -> nn.Module:
    """Return random weights, with norms that have the statistics of noise, slightly changed.

    With made-up statistics a deep network forgets its input, and no fault shows.
    """
    torch.manual_seed(0)
    net: nn.Module = getattr(torchvision.models, name)(num_classes=10).eval()
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias, 0, 0.1)
    with torch.no_grad():
        net.train()(torch.randn(16, 3, SIZE, SIZE))
    for norm in norms:
        assert norm.running_mean is not None
        assert norm.running_var is not None
        norm.running_mean += 0.1 * torch.randn_like(norm.running_mean) * norm.running_var.sqrt()
        norm.running_var *= torch.empty_like(norm.running_var).uniform_(0.5, 2.0)
    return net.eval()


def exported(net: nn.Module, folder: Path) -> dict[str, Path]:
    """Return the program and two ONNX files of it."""
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(net, (torch.randn(2, 3, SIZE, SIZE),), dynamic_shapes=({0: batch},))
    paths = {"program": folder / "net.pt2", "optimised": folder / "optimised.onnx", "plain": folder / "plain.onnx"}
    torch.export.save(program, paths["program"])
    for name in ("optimised", "plain"):
        found = torch.onnx.export(program, dynamo=True, opset_version=20, external_data=False, verbose=False, optimize=name == "optimised")
        assert found is not None
        found.save(paths[name])
    return paths


def twice(path: Path, folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield the file with the weights of one convolution doubled: the first, a middle one, the
    last."""
    model = onnx.load(path)
    names = {tensor.name for tensor in model.graph.initializer}
    weights = [node.input[1] for node in model.graph.node if node.op_type == "Conv" and node.input[1] in names]
    for place in np.linspace(0, len(weights) - 1, NUM_WRONG).astype(int):
        wrong = onnx.ModelProto()
        wrong.CopyFrom(model)
        tensor = next(each for each in wrong.graph.initializer if each.name == weights[place])
        tensor.CopyFrom(numpy_helper.from_array(2 * numpy_helper.to_array(tensor), tensor.name))
        onnx.save(wrong, folder / "wrong.onnx")
        yield weights[place], folder / "wrong.onnx"


def verified(reference: Path, candidate: Path, samples: Path, names: dict[str, str]) -> Verdict:
    return verify_pair(PairRequest(reference=reference, candidate=candidate, samples=str(samples), batch_size=8, names=names))


def row(name: str, kind: str, verdict: Verdict) -> dict[str, object]:
    (link,) = verdict.links
    errors = {each.stage: each.max for each in verdict.errors}
    return {
        "network": name,
        "file": kind,
        "passed": verdict.passed,
        "error_of_reference": errors.get("reference"),
        "error_of_candidate": errors.get("candidate"),
        "ratio": errors["candidate"] / errors["reference"] if verdict.errors else None,
        "budget": link.budget.max if link.budget else None,
        "layer": link.place.layer if link.place else None,
    }


def rows(name: str) -> Iterator[dict[str, object]]:
    with tempfile.TemporaryDirectory() as where, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folder = Path(where)
        paths = exported(perturbed(name), folder)
        (end,) = onnx.load(paths["plain"]).graph.input
        samples = folder / "samples.npz"
        drawn = np.random.default_rng(0).standard_normal((NUM_SAMPLES, 3, SIZE, SIZE)).astype(np.float32)
        np.savez(samples, **{end.name: drawn})  # type: ignore[arg-type]
        for kind in ("optimised", "plain"):
            names = output_names(paths["program"], paths[kind])
            yield row(name, kind, verified(paths["program"], paths[kind], samples, names))
        for layer, wrong in twice(paths["plain"], folder):
            yield row(name, f"plain, {layer} twice as large", verified(paths["program"], wrong, samples, output_names(paths["program"], wrong)))


def output_names(program: Path, file: Path) -> dict[str, str]:
    """Map the one output of each, if the exporter renamed it."""
    ours = torch.export.load(program).graph_signature.user_outputs[0]
    theirs = onnx.load(file).graph.output[0].name
    return {} if ours == theirs else {str(ours): theirs}


def main() -> None:
    found = []
    for name in NETWORKS:
        for each in rows(name):
            found.append(each)
            print(each, flush=True)
    print(write_result("foreign_models", {"size": SIZE, "samples": NUM_SAMPLES, "rows": found}))


if __name__ == "__main__":
    main()
