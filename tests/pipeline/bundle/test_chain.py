"""The chains of a bundle: which stages are run in which other ways."""

from pathlib import Path

from exact_files import DIALECTS, calibrated

from deploy.runners.base import TensorSpec
from export.exact.grid import folded_from_integers, integers_of
from pipeline.bundle.chain import TENSORRT_FILE, ChainSetting, ExactForms, exact_chain

SMALL = (1, 8, 8)


def test_the_signed_file_is_not_fused_by_onnx_runtime(tmp_path: Path) -> None:
    """Its kernels for signed bytes saturate on CPUs without VNNI (tests/export/exact/test_other_processors.py)."""
    grid = calibrated("small", SMALL)
    paths = {name: tmp_path / f"{name}.onnx" for name in DIALECTS}
    for name, write in DIALECTS.items():
        paths[name].write_bytes(write(grid, SMALL, 10, {}))
    forms = ExactForms(grid, folded_from_integers(grid, integers_of(grid)), paths["unsigned"], paths["signed"], None)
    image, logits = TensorSpec("image", "uint8", (None, *SMALL)), TensorSpec("logits", "float32", (None, 10))
    chain = exact_chain(ChainSetting("cpu", image, logits, ("onnxruntime-cpu",)), forms)
    checks = {stage.name: {variant.check for variant in stage.variants} for stage in chain.stages}
    assert checks[TENSORRT_FILE] == {"threads"}
    assert checks["exact ONNX file"] == {"threads", "optimisation"}
