"""The chains of a bundle: which stages run in which variants."""

from pathlib import Path

from exact_files import DIALECTS, calibrated

from deploy.runners.runner import TensorSpec
from deploy.runners.torch import graph_form
from export.exact.grid import folded_from_integers, integers_of
from pipeline.bundle.chain import FOLDED, BundleForms, Engines, Graphs, chain_of

SMALL = (1, 8, 8)


def test_the_signed_file_is_not_fused_by_onnx_runtime(tmp_path: Path) -> None:
    """Its kernels for signed bytes saturate on CPUs without VNNI.

    See tests/export/exact/test_other_processors.py.
    """
    grid = calibrated("small", SMALL)
    paths = {name: tmp_path / f"{name}.onnx" for name in DIALECTS}
    for name, write in DIALECTS.items():
        paths[name].write_bytes(write(grid, SMALL, 10, {}))
    image, logits = TensorSpec("image", "uint8", (None, *SMALL)), TensorSpec("logits", "float32", (None, 10))
    graph = graph_form("graph", folded_from_integers(grid, integers_of(grid)), (image, logits), "cpu")
    forms = BundleForms(
        arithmetic="grid",
        graphs=Graphs(training=graph, evaluation=graph, folded=graph, reference=None, budget_from=FOLDED),
        model=paths["unsigned"],
        signed_model=paths["signed"],
        runtimes=("onnxruntime-cpu",),
        engines=Engines(files={}, second_builds={}, wanted=False),
    )
    chain = chain_of(forms)
    checks = {stage.name: {variant.check for variant in stage.form.variants()} for stage in chain.stages}
    assert checks["exact ONNX file for TensorRT"] == {"threads"}
    assert checks["exact ONNX file"] == {"threads", "optimisation"}
