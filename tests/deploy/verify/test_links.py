"""The variants of a stage: each opens the stage with one setting changed."""

from onnx_files import IMAGE, LOGITS, Perceptron, random_weights

from deploy.runners.base import Runner
from deploy.runners.table import RunOptions
from deploy.runners.torch import TorchRunner
from deploy.verify.links import file_variants, torch_variants


def runner() -> Runner:
    return TorchRunner(Perceptron(random_weights()), [IMAGE], [LOGITS])


def test_of_a_file() -> None:
    seen = []

    def opened(options: RunOptions) -> Runner:
        seen.append(options)
        return runner()

    variants = file_variants("onnxruntime-cpu", RunOptions(), opened)
    for variant in variants:
        variant.open().close()
    assert [variant.check for variant in variants] == ["threads"] * 2 + ["optimisation"] * 3
    assert [(options.threads, options.optimisation) for options in seen] == [(1, "all"), (3, "all"), (0, "none"), (0, "basic"), (0, "extended")]


def test_of_a_module() -> None:
    seen = []

    def opened(*, threads: int = 0, channels_last: bool = False) -> Runner:
        seen.append((threads, channels_last))
        return runner()

    variants = torch_variants("cpu", opened)
    for variant in variants:
        variant.open().close()
    assert [(variant.check, variant.setting) for variant in variants] == [
        ("layout", "channels last"),
        ("threads", "1 thread"),
        ("threads", "3 threads"),
    ]
    assert seen == [(0, True), (1, False), (3, False)]
    assert [variant.check for variant in torch_variants("cuda:0", opened)] == ["layout"]
