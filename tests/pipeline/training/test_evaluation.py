"""The running average of weights and statistics.

The recursion in NumPy and float64, what it keeps, and that it is what is deployed.
"""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from commands import pipeline
from torch.fx import GraphModule

from export.bundle import TRAINING_WEIGHTS as WEIGHTS
from pipeline.config.methods import BatchnormOptions, CzmigOptions, MethodOptions, MimicnormOptions, NonormOptions
from pipeline.config.sections import ModelEma
from pipeline.methods.method import RewrittenGraph
from pipeline.run_folder import RunFolder
from pipeline.training import Settings, TrainingData, read_checkpoint, train
from pipeline.training.checkpoint import checkpoint_bytes, write_checkpoint
from pipeline.training.evaluation import WeightAverage, decay_after, evaluate
from pipeline.training.metrics import Tally
from pipeline.training.step import sgd

Build = Callable[[MethodOptions], RewrittenGraph]
QUICKSTART = Path(__file__).parents[3] / "configs" / "quickstart.yaml"
Array = np.ndarray[tuple[int, ...], np.dtype[np.float64]]
CPU = torch.device("cpu")


def moved(graph: GraphModule, seed: int) -> None:
    """Other weights, statistics and counts."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in (*graph.parameters(), *graph.buffers()):
            if value.is_floating_point():
                value.copy_(torch.randn(value.shape, generator=generator, dtype=torch.float64))
            else:
                value.add_(1)


def state(graph: GraphModule) -> dict[str, Array]:
    return {name: value.detach().numpy().copy() for name, value in graph.state_dict().items()}


@pytest.mark.parametrize("warmup", [False, True])
def test_the_average_is_the_recursion_written_out(build: Build, warmup: bool) -> None:
    graph = build(BatchnormOptions(name="batchnorm")).graph.double()
    average = WeightAverage(graph, ModelEma(decay=0.7, warmup=warmup))
    expected = dict[str, Array]()
    for step in range(6):
        moved(graph, step)
        average.update(graph, step)
        decay = min(0.7, (1 + step) / (10 + step)) if warmup else 0.7
        for name, value in state(graph).items():
            floating = np.issubdtype(value.dtype, np.floating)
            expected[name] = decay * expected[name] + (1 - decay) * value if floating and step > 0 else value
    averaged = state(average.graph)
    assert {name for name in averaged if "running_" in name} != set()
    for name, value in averaged.items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-13, atol=1e-15, err_msg=name)
    counts = [value for name, value in averaged.items() if name.endswith("num_batches_tracked")]
    assert counts
    assert all(count == 6 for count in counts)


def test_the_decay_of_each_step() -> None:
    assert [decay_after(steps, ModelEma(decay=0.9)) for steps in (0, 1, 1000)] == [0.0, 0.9, 0.9]
    assert [decay_after(steps, ModelEma(decay=0.9, warmup=True)) for steps in (0, 1, 10, 1000)] == [0.0, 2 / 11, 11 / 20, 0.9]


def test_filters_of_zero_mean_have_averages_of_zero_mean(build: Build) -> None:
    """The weight mean is linear, so an average of centred filters is centred, up to rounding."""
    network = build(MimicnormOptions(name="mimicnorm"))
    graph = network.graph.double()
    average = WeightAverage(graph, ModelEma(decay=0.9))
    for step in range(20):
        moved(graph, step)
        network.rules.project()
        average.update(graph, step)
    ends = ("conv2.derivation.weight", "conv1.weight")
    centred = [value for name, value in average.graph.named_parameters() if name.endswith(ends)]
    wide = [value for value in centred if value[0].numel() > 50]
    assert len(wide) == 6
    assert max(value.mean((1, 2, 3)).abs().max().item() for value in wide) < 1e-16


def test_of_an_exponential_scale_the_exponent_is_averaged(build: Build) -> None:
    network = build(CzmigOptions(name="czmig"))
    average = WeightAverage(network.graph, ModelEma(decay=0.5))
    name = "network.stages.0.0.conv1.derivation.log_scale"
    for step, exponent in enumerate((0.0, 2.0)):
        torch.nn.init.constant_(network.graph.get_parameter(name), exponent)
        average.update(network.graph, step)
    folded = average.graph.get_submodule("network.stages.0.0.conv1.derivation")()[0]
    direction = average.graph.get_parameter("network.stages.0.0.conv1.derivation.direction")
    assert torch.equal(folded, direction * torch.tensor(1.0).exp())  # not (e^0 + e^2) / 2


def with_average(settings: Settings, decay: float = 0.8) -> Settings:
    return replace(settings, training=settings.training.model_copy(update={"model_ema": ModelEma(decay=decay), "learning_rate": 0.1}))


@pytest.mark.parametrize("method", [CzmigOptions(name="czmig"), BatchnormOptions(name="batchnorm")])
def test_the_average_is_what_is_evaluated_left_and_exported(build: Build, data: TrainingData, settings: Settings, method: MethodOptions) -> None:
    network = build(method)
    history = train(network, data, with_average(settings))
    checkpoint = read_checkpoint(settings.folder.last_checkpoint)
    left = {name: value for name, value in network.graph.state_dict().items() if name in checkpoint.average}
    assert left.keys() == checkpoint.average.keys() == checkpoint.weights.keys()
    assert all(torch.equal(value, checkpoint.average[name]) for name, value in left.items())
    assert not all(torch.equal(value, checkpoint.weights[name]) for name, value in left.items())
    exported, live = build(method), build(method)
    checkpoint.restore_deployed(exported.graph)
    checkpoint.restore_graph(live.graph)
    found = evaluate(exported.graph, data.test.batches(256), CPU)
    assert (found.loss, found.accuracy) == (history.records[-1].test_loss, history.records[-1].test_accuracy)
    assert evaluate(live.graph, data.test.batches(256), CPU).loss != found.loss


def test_training_itself_goes_on_with_the_weights(build: Build, data: TrainingData, settings: Settings, tmp_path: Path) -> None:
    plain, averaged = build(NonormOptions(name="nonorm")), build(NonormOptions(name="nonorm"))
    train(plain, data, replace(with_average(settings, decay=0.0), folder=RunFolder(tmp_path / "plain")))
    train(averaged, data, with_average(settings))
    kept = read_checkpoint(settings.folder.last_checkpoint)
    assert all(torch.equal(value, kept.weights[name]) for name, value in plain.graph.state_dict().items())
    assert read_checkpoint(tmp_path / "plain" / "checkpoints" / "last.safetensors").average == {}


def test_a_run_that_begins_with_given_weights_has_no_average_yet(build: Build, data: TrainingData, settings: Settings, tmp_path: Path) -> None:
    """A network of any origin becomes a run: a checkpoint before the first step."""
    settings = with_average(settings)
    fresh, given, resumed = (build(NonormOptions(name="nonorm")) for _ in range(3))
    train(fresh, data, replace(settings, folder=RunFolder(tmp_path / "fresh")))
    position = {"epoch": 0, "step": 0, "steps_per_epoch": 4, "tally": Tally().as_dict(), "records": []}
    optimiser = sgd(given.rules.parameter_groups, settings.training)
    write_checkpoint(settings.folder.last_checkpoint, checkpoint_bytes(given.graph, optimiser, position, settings.config))
    train(resumed, data, settings, resume=read_checkpoint(settings.folder.last_checkpoint))
    assert all(torch.equal(value, resumed.graph.state_dict()[name]) for name, value in fresh.graph.state_dict().items())


def test_exporting_a_run_exports_the_average(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Right after training, and from the checkpoint that training left."""
    run, bundles = tmp_path / "run", []
    options = ["training.epochs=2", "training.schedule={name: constant}", "verify.samples=50", "training.model_ema.decay=0.9"]
    given = [part for option in options for part in ("--set", option)]
    for command in (["train-export", QUICKSTART, "--out", run, *given], ["export", run]):
        assert pipeline(capfd, *command).code == 0
        bundles.append(safetensors.torch.load((run / "bundle" / WEIGHTS).read_bytes()))
        shutil.rmtree(run / "bundle")
    whole, halves = bundles
    kept = read_checkpoint(run / "checkpoints" / "last.safetensors")
    assert whole.keys() == halves.keys() == kept.average.keys()
    assert all(torch.equal(value, whole[name]) and torch.equal(value, kept.average[name]) for name, value in halves.items())
    assert not all(torch.equal(value, kept.weights[name]) for name, value in halves.items())
