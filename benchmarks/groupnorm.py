"""How far ONNX Runtime is from float64 with GroupNorm in two forms.

    python -m benchmarks.groupnorm

The forms are an InstanceNormalization and the means that our files hold. The error against the
float64 evaluation of the same weights is a multiple of PyTorch's own error (the budget of a verdict
is 4), maximum and root mean square. Weights are initial ones moved by 5 %. Images are random, and
one is white: its maps are nearly constant, so their variance is small against their mean. Writes
results/groupnorm.json and prints a table.
"""

import copy
import tempfile
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from torch.fx import GraphModule

from benchmarks.environment import write_result
from export.graph import Normalise, trace
from export.graph.fold import fold
from export.onnx import INPUT, onnx_from_graph
from pipeline.config.methods import GroupnormOptions
from pipeline.methods import method_from_options
from pipeline.networks import network_by_name

CASES = (("resnet20", 32, 32), ("torchvision:resnet18", 224, 4), ("torchvision:resnet50", 224, 2))
"""Network, height and width, number of images."""
Array = NDArray[np.float64]


def main() -> None:
    torch.set_num_threads(1)
    results = [_measured(*case) for case in CASES]
    print(write_result("groupnorm", {"what": "error of ONNX Runtime on the CPU against float64, in multiples of PyTorch's", "results": results}))
    for each in results:
        print(f"{each['network']:22} {each['size']:4}  " + "  ".join(f"{form}: {each[form]}" for form in ("InstanceNormalization", "means")))


def _measured(network: str, size: int, num_images: int) -> dict[str, object]:
    shape = (3, size, size)
    folded, images = _folded(network, shape), _images(num_images, shape)
    with torch.no_grad():
        ours = folded(images).double().numpy()
        reference = copy.deepcopy(folded).double()(images).numpy()
    files = {"InstanceNormalization": _as_exporters_do(folded, shape), "means": onnx_from_graph(folded, shape, {})}
    errors = {form: _ratio(_run(file, images) - reference, ours - reference) for form, file in files.items()}
    return {"network": network, "size": size, "images": num_images, **errors}


def _folded(network: str, shape: tuple[int, int, int]) -> GraphModule:
    torch.manual_seed(0)
    graph = trace(network_by_name(network, 10, 3), Normalise((128.0,) * 3, (64.0,) * 3), shape, 10)
    generator = torch.Generator().manual_seed(0)
    training = method_from_options(GroupnormOptions(name="groupnorm")).rewrite(graph, generator)
    with torch.no_grad():
        for parameter in training.graph.parameters():
            parameter.add_(0.05 * parameter.abs().mean().clamp_min(0.1) * torch.randn(parameter.shape, generator=generator))
    return fold(training.graph)


def _images(number: int, shape: tuple[int, int, int]) -> torch.Tensor:
    images = torch.randint(0, 256, (number, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    images[0] = 255
    return images


def _as_exporters_do(folded: GraphModule, shape: tuple[int, int, int]) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        example = torch.zeros((2, *shape), dtype=torch.uint8)
        batch = ({0: torch.export.Dim("batch", min=1)},)
        torch.onnx.export(folded, (example,), path, dynamo=True, opset_version=20, input_names=[INPUT], dynamic_shapes=batch, external_data=False)
        return path.read_bytes()


def _run(file: bytes, images: torch.Tensor) -> Array:
    (logits,) = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"]).run(None, {INPUT: images.numpy()})
    return np.asarray(logits, np.float64)


def _ratio(error: Array, pytorch: Array) -> dict[str, float]:
    return {
        "max": round(float(np.abs(error).max() / np.abs(pytorch).max()), 2),
        "rms": round(float(np.sqrt(np.square(error).mean() / np.square(pytorch).mean())), 2),
    }


if __name__ == "__main__":
    main()
