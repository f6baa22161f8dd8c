"""Whole runs on random images: equal bits interrupted or not, the files, and divergence."""

import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from export.errors import UsageError
from pipeline.config.methods import BatchnormOptions, CzmigOptions, MethodOptions, NonormOptions
from pipeline.config.sections import AdaptiveClipping, Mixup, ModelEma, NormClipping, Schedule, Training
from pipeline.methods.method import RewrittenGraph
from pipeline.run_folder import RunFolder
from pipeline.training import (
    Checkpoint,
    EpochRecord,
    NotFiniteError,
    Settings,
    SilentWatcher,
    TrainingData,
    load_checkpoint,
    read_checkpoint,
    train,
)
from pipeline.training import loop as training_loop
from pipeline.training.mixup import Mixup as MixupPart
from pipeline.training.mixup import draw, insert_mixup
from pipeline.training.protocols import Batch

Build = Callable[[MethodOptions], RewrittenGraph]
BATCH_SIZE = 8
METHODS: list[MethodOptions] = [
    CzmigOptions(name="czmig"),
    BatchnormOptions(name="batchnorm"),
    NonormOptions(name="nonorm"),
]
by_method = pytest.mark.parametrize("method", METHODS, ids=lambda options: options.name)


class _SignalAt(SilentWatcher):
    """Sends a signal to this process after a step."""

    def __init__(self, epoch: int, step: int, number: signal.Signals = signal.SIGINT) -> None:
        self.at, self.number = (epoch, step), number

    def step_done(self, epoch: int, step_in_epoch: int, loss: float) -> None:
        if (epoch, step_in_epoch) == self.at:
            os.kill(os.getpid(), self.number)


def _with(settings: Settings, **changes: object) -> Settings:
    return replace(settings, training=settings.training.model_copy(update=changes))


def _state(network: RewrittenGraph) -> dict[str, torch.Tensor]:
    named = (*network.graph.named_parameters(), *network.graph.named_buffers())
    return {name: value.detach().clone() for name, value in named}


def _assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys() != set()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


def _figures(records: tuple[EpochRecord, ...]) -> list[dict[str, float]]:
    """Return everything that does not depend on the clock or on the memory of the process."""
    measured = {"seconds", "images_per_second", "peak_memory_bytes"}
    return [{key: value for key, value in r.as_dict().items() if key not in measured} for r in records]


@by_method
@pytest.mark.parametrize("place", [(1, 2), (1, 4), (2, 1)], ids=["in epoch 1", "before evaluation", "in epoch 2"])
def test_an_interrupted_run_ends_with_the_bits_of_an_uninterrupted_one(
    build: Build, data: TrainingData, settings: Settings, tmp_path: Path, method: MethodOptions, place: tuple[int, int]
) -> None:
    whole = build(method)
    expected = train(whole, data, replace(settings, folder=RunFolder(tmp_path / "whole")))

    with pytest.raises(KeyboardInterrupt):
        train(build(method), data, settings, _SignalAt(*place))
    resumed = build(method)
    checkpoint = load_checkpoint(settings.folder.last_checkpoint, settings.config)
    history = train(resumed, data, settings, resume=checkpoint)

    _assert_same(_state(resumed), _state(whole))
    assert _figures(history.records) == _figures(expected.records)
    end, expected_end = (read_checkpoint(folder.last_checkpoint) for folder in (settings.folder, RunFolder(tmp_path / "whole")))
    _assert_same(end.weights, expected_end.weights)
    _assert_same(end.momentum, expected_end.momentum)


EXTRAS: dict[str, dict[str, object]] = {
    "mixup of images": {"mixup": Mixup(alpha=1.0)},
    "manifold mixup": {"mixup": Mixup(alpha=6.0, where="hidden")},
    "clipping": {"clip": NormClipping(name="norm", threshold=0.5, growth="times_log")},
    "adaptive clipping": {"clip": AdaptiveClipping(name="agc")},
    "average": {"model_ema": ModelEma(decay=0.8, warmup=True)},
    "accumulation": {"accumulate": 2},
    "one cycle": {"schedule": Schedule(name="one_cycle", last=0.1)},
    "diagnosis": {"diagnosis": "epoch"},
}
EXTRAS["everything"] = {name: value for extra in EXTRAS.values() for name, value in extra.items()}
PLAIN = {name: Training.model_fields[name].get_default() for name in EXTRAS["everything"]}


def _parts(checkpoint: Checkpoint) -> tuple[dict[str, torch.Tensor], ...]:
    return checkpoint.weights, checkpoint.momentum, checkpoint.average


@pytest.mark.parametrize("method", METHODS[:2], ids=lambda options: options.name)
@pytest.mark.parametrize("place", [(1, 1), (2, 2)], ids=["in epoch 1", "in epoch 2"])
@pytest.mark.parametrize("extra", EXTRAS)
def test_with_whatever_training_adds_an_interrupted_run_ends_with_the_same_bits(
    build: Build, data: TrainingData, settings: Settings, tmp_path: Path, method: MethodOptions, place: tuple[int, int], extra: str
) -> None:
    settings = _with(settings, **EXTRAS[extra])
    whole_settings = replace(settings, folder=RunFolder(tmp_path / "whole"))

    def mixed() -> RewrittenGraph:
        network = build(method)
        insert_mixup(network.graph, settings.training.mixup)
        return network

    whole, resumed = mixed(), mixed()
    expected = train(whole, data, whole_settings)
    with pytest.raises(KeyboardInterrupt):
        train(mixed(), data, settings, _SignalAt(*place))
    history = train(resumed, data, settings, resume=load_checkpoint(settings.folder.last_checkpoint, settings.config))

    _assert_same(_state(resumed), _state(whole))
    assert _figures(history.records) == _figures(expected.records)
    for one, other in zip(*(_parts(read_checkpoint(each.folder.last_checkpoint)) for each in (settings, whole_settings)), strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(value, other[name]) for name, value in one.items())
    diagnoses = [each.folder.diagnosis for each in (settings, whole_settings)]
    assert [path.exists() for path in diagnoses] == [settings.training.diagnosis == "epoch"] * 2
    assert not diagnoses[0].exists() or diagnoses[0].read_bytes() == diagnoses[1].read_bytes()


@pytest.mark.parametrize("extra", EXTRAS)
def test_whatever_training_adds_changes_the_weights_but_diagnosis(
    build: Build, data: TrainingData, settings: Settings, tmp_path: Path, extra: str
) -> None:
    settings = _with(settings, **EXTRAS[extra])
    plain, other = build(METHODS[0]), build(METHODS[0])
    insert_mixup(other.graph, settings.training.mixup)
    train(plain, data, replace(_with(settings, **PLAIN), folder=RunFolder(tmp_path / "plain")))
    train(other, data, settings)
    same = all(torch.equal(value, _state(other)[name]) for name, value in _state(plain).items())
    assert same == (extra == "diagnosis")


def test_accumulated_batches_make_the_step_of_one_large_batch(build: Build, data: TrainingData, settings: Settings, tmp_path: Path) -> None:
    """Without batch statistics; float32 sums are in another order."""

    class Joined:
        steps_per_epoch = 2

        def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
            batches = list(data.training.epoch(epoch))
            for first in range(2 * first_step, 4, 2):
                images, labels = zip(*batches[first : first + 2], strict=True)
                yield torch.cat(images), torch.cat(labels)

        def whole_set(self) -> Iterator[Batch]:
            return data.training.whole_set()

    accumulated, joined = build(METHODS[2]), build(METHODS[2])
    records = train(accumulated, data, _with(settings, accumulate=2)).records
    expected = train(joined, replace(data, training=Joined()), replace(settings, folder=RunFolder(tmp_path / "joined"))).records
    assert [record.step for record in records] == [record.step for record in expected] == [2, 4]
    for (name, value), other in zip(_state(accumulated).items(), _state(joined).values(), strict=True):
        torch.testing.assert_close(value, other, rtol=0, atol=1e-6, msg=name)
    assert records[-1].train_loss == pytest.approx(expected[-1].train_loss, rel=1e-6)
    assert records[-1].train_accuracy == expected[-1].train_accuracy


def test_batches_that_fill_no_step_are_left_out_and_a_schedule_counts_steps(build: Build, data: TrainingData, settings: Settings) -> None:
    seen: list[int] = []

    class Counted:
        steps_per_epoch = 7

        def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
            for step in range(first_step, 7):
                seen.append(step)
                yield next(data.training.epoch(epoch, step % 4))

        def whole_set(self) -> Iterator[Batch]:
            return data.training.whole_set()

    settings = _with(settings, accumulate=3, schedule=Schedule(name="constant", warmup_epochs=1.0))
    records = train(build(METHODS[2]), replace(data, training=Counted()), settings).records
    assert [record.step for record in records] == [2, 4]
    assert seen == [0, 1, 2, 3, 4, 5] * 2
    assert [record.lr for record in records] == [0.01, 0.01]


@pytest.mark.parametrize("epochs", [1, 2])
def test_the_threshold_of_clipping_is_that_of_the_epoch(build: Build, data: TrainingData, settings: Settings, tmp_path: Path, epochs: int) -> None:
    constant, growing = build(METHODS[2]), build(METHODS[2])
    for network, growth in ((constant, "constant"), (growing, "times_log")):
        clip = NormClipping.model_validate({"name": "norm", "threshold": 0.01, "growth": growth})
        train(network, data, replace(_with(settings, clip=clip, epochs=epochs), folder=RunFolder(tmp_path / growth)))
    same = all(torch.equal(value, _state(growing)[name]) for name, value in _state(constant).items())
    assert same == (epochs == 1)


@pytest.fixture
def mixings(monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, list[int]] | None]:
    """Return what was mixed in each forward pass of a graph with one mixup place."""
    found: list[tuple[float, list[int]] | None] = []
    forward = MixupPart.forward

    def noting(self: MixupPart, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            found.append((self.mixing.share, self.mixing.partners.tolist()) if self.mixing else None)
        return forward(self, x)

    monkeypatch.setattr(MixupPart, "forward", noting)
    return found


def test_every_batch_of_a_step_draws_for_itself(
    build: Build, data: TrainingData, settings: Settings, mixings: list[tuple[float, list[int]] | None]
) -> None:
    settings = _with(settings, mixup=Mixup(alpha=6.0), accumulate=2, seed=3)
    network = build(METHODS[2])
    insert_mixup(network.graph, settings.training.mixup)
    train(network, data, settings)
    drawn = [draw(3, batch, 6.0, 1, BATCH_SIZE) for batch in range(8)]
    assert mixings == [(share, partners.tolist()) for share, _, partners in drawn]


def test_more_batches_to_a_step_than_an_epoch_has_are_refused(build: Build, data: TrainingData, settings: Settings) -> None:
    with pytest.raises(UsageError, match=r"^training\.accumulate 5 is more than the 4 batches of an epoch; set it to 4 or less$"):
        train(build(METHODS[2]), data, _with(settings, accumulate=5))
    assert not settings.folder.path.exists()


def test_the_precision_and_layout_do_not_disturb_resuming(build: Build, data: TrainingData, settings: Settings, tmp_path: Path) -> None:
    settings = _with(settings, precision="bfloat16", deterministic=True, nesterov=True)
    whole, resumed = build(METHODS[0]), build(METHODS[0])
    train(whole, data, replace(settings, folder=RunFolder(tmp_path / "whole")))
    with pytest.raises(KeyboardInterrupt):
        train(build(METHODS[0]), data, settings, _SignalAt(1, 3, signal.SIGTERM))
    train(resumed, data, settings, resume=read_checkpoint(settings.folder.last_checkpoint))
    _assert_same(_state(resumed), _state(whole))


def test_another_seed_gives_other_noise(build: Build, data: TrainingData, settings: Settings) -> None:
    one, other = build(METHODS[0]), build(METHODS[0])
    train(one, data, settings)
    train(other, data, _with(settings, seed=1))
    assert not torch.equal(_state(one)["network.classifier.derivation.weight"], _state(other)["network.classifier.derivation.weight"])


def test_a_run_counts_its_own_memory(build: Build, data: TrainingData, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """The peak of an earlier run in this process is reset first."""
    events: list[str] = []

    def peak(device: torch.device) -> int:
        events.append("asked")
        return 1

    monkeypatch.setattr(training_loop, "forget_peak_memory", lambda device: events.append("forgotten"))
    monkeypatch.setattr(training_loop, "peak_memory_bytes", peak)
    train(build(NonormOptions(name="nonorm")), data, settings)
    assert events == ["forgotten", *["asked"] * settings.training.epochs]


def test_the_folder_holds_a_line_an_epoch_and_both_checkpoints(build: Build, data: TrainingData, settings: Settings) -> None:
    history = train(build(METHODS[0]), data, settings)
    lines = [json.loads(line) for line in (settings.folder.metrics).read_text().splitlines()]
    assert lines == [record.as_dict() for record in history.records]
    assert [(line["epoch"], line["step"]) for line in lines] == [(1, 4), (2, 8)]
    assert all(line["penalty"] > 0 for line in lines)
    assert sorted(path.name for path in settings.folder.last_checkpoint.parent.iterdir()) == [
        "best.safetensors",
        "last.safetensors",
    ]
    best = read_checkpoint(settings.folder.best_checkpoint).position["records"]
    accuracies = [record.test_accuracy for record in history.records]
    assert len(best) == 1 + accuracies.index(max(accuracies))


def test_the_rate_of_an_epoch_follows_the_schedule(build: Build, data: TrainingData, settings: Settings) -> None:
    settings = _with(settings, schedule=Schedule(milestones=(1,), factor=0.5))
    assert [record.lr for record in train(build(METHODS[2]), data, settings).records] == [0.01, 0.005]


def test_the_momentum_follows_its_points(build: Build, data: TrainingData, settings: Settings) -> None:
    networks = [build(METHODS[2]) for _ in range(3)]
    schedule = Schedule(momentum_points=((0, 0.5), (9, 0.5)))
    train(networks[0], data, _with(settings, momentum=0.9, schedule=schedule))
    train(networks[1], data, _with(settings, momentum=0.5, schedule=Schedule()))
    train(networks[2], data, _with(settings, momentum=0.9, schedule=Schedule()))
    _assert_same(_state(networks[0]), _state(networks[1]))
    assert not torch.equal(_state(networks[0])["network.classifier.weight"], _state(networks[2])["network.classifier.weight"])


def test_the_graph_is_left_as_it_is_deployed(build: Build, data: TrainingData, settings: Settings) -> None:
    network = build(METHODS[1])
    train(network, data, settings)
    assert not network.graph.training
    assert all(value.is_contiguous() for value in network.graph.state_dict().values())
    _assert_same(_state(network), read_checkpoint(settings.folder.last_checkpoint).weights)


def test_a_finished_run_can_be_taken_up_again_and_does_nothing(build: Build, data: TrainingData, settings: Settings) -> None:
    first, again = build(METHODS[0]), build(METHODS[0])
    history = train(first, data, settings)
    assert train(again, data, settings, resume=read_checkpoint(settings.folder.last_checkpoint)) == history
    _assert_same(_state(again), _state(first))


def test_a_fresh_run_leaves_nothing_of_the_earlier_one(build: Build, data: TrainingData, settings: Settings) -> None:
    train(build(METHODS[0]), data, settings)
    with pytest.raises(KeyboardInterrupt):
        train(build(METHODS[0]), data, settings, _SignalAt(1, 1))
    assert (settings.folder.metrics).read_text() == ""
    assert [path.name for path in settings.folder.last_checkpoint.parent.iterdir()] == ["last.safetensors"]
    assert read_checkpoint(settings.folder.last_checkpoint).position["step"] == 1


def test_a_fresh_run_leaves_the_files_of_the_user(build: Build, data: TrainingData, settings: Settings) -> None:
    checkpoints = settings.folder.last_checkpoint.parent
    checkpoints.mkdir(parents=True)
    for name in ("epoch-3.safetensors", "notes.txt", ".last.safetensors.0123456789ab", ".best.safetensors.0123456789ab"):
        (checkpoints / name).touch()
    settings.folder.best_checkpoint.touch()
    with pytest.raises(KeyboardInterrupt):
        train(build(METHODS[0]), data, settings, _SignalAt(1, 1))
    assert sorted(path.name for path in checkpoints.iterdir()) == ["epoch-3.safetensors", "last.safetensors", "notes.txt"]


def test_data_of_another_size_is_refused_on_resume(build: Build, data: TrainingData, settings: Settings) -> None:
    train(build(METHODS[0]), data, settings)
    more = replace(data, training=replace(data.training, steps_per_epoch=5))  # type: ignore[type-var]
    with pytest.raises(UsageError, match="4 steps an epoch, the data now gives 5"):
        train(build(METHODS[0]), more, settings, resume=read_checkpoint(settings.folder.last_checkpoint))


def test_the_global_random_numbers_are_left_alone(build: Build, data: TrainingData, settings: Settings) -> None:
    network = build(METHODS[0])
    before = torch.get_rng_state()
    train(network, data, settings)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_second_signal_stops_at_once(build: Build, data: TrainingData, settings: Settings) -> None:
    class Twice(_SignalAt):
        def step_done(self, epoch: int, step_in_epoch: int, loss: float) -> None:
            super().step_done(epoch, step_in_epoch, loss)
            super().step_done(epoch, step_in_epoch, loss)

    with pytest.raises(KeyboardInterrupt):
        train(build(METHODS[0]), data, settings, Twice(1, 2))
    assert not settings.folder.last_checkpoint.exists()


def test_handlers_are_put_back(build: Build, data: TrainingData, settings: Settings) -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    train(build(METHODS[0]), data, settings)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_it_runs_outside_the_main_thread(build: Build, data: TrainingData, settings: Settings) -> None:
    lengths: list[int] = []
    network = build(METHODS[0])
    thread = threading.Thread(target=lambda: lengths.append(len(train(network, data, settings).records)))
    thread.start()
    thread.join()
    assert lengths == [2]


class _Poison(SilentWatcher):
    """Makes a weight infinite after a step."""

    def __init__(self, network: RewrittenGraph, name: str, epoch: int, step: int, value: float) -> None:
        self.weight, self.at, self.value = network.graph.get_parameter(name), (epoch, step), value

    @torch.no_grad()
    def step_done(self, epoch: int, step_in_epoch: int, loss: float) -> None:
        if (epoch, step_in_epoch) == self.at:
            self.weight.fill_(self.value)


def test_weights_that_are_not_finite_stop_the_run_at_the_next_step(build: Build, data: TrainingData, settings: Settings) -> None:
    network = build(METHODS[0])
    watcher = _Poison(network, "network.stages.1.0.conv2.derivation.direction", 2, 2, float("nan"))
    with pytest.raises(NotFiniteError) as caught:
        train(network, data, settings, watcher)
    message = str(caught.value)
    assert "epoch 2, step 7, at learning rate 0.01" in message
    assert "derivation.direction of layer network.stages.1.0.conv2 is not finite" in message
    assert f"the last good checkpoint is {settings.folder.last_checkpoint}" in message
    assert "learning_rate" in message
    assert "\n" not in message
    assert caught.value.exit_code == 2
    assert read_checkpoint(settings.folder.last_checkpoint).position["step"] == 4


def test_activations_that_are_not_finite_are_traced_to_their_layer_and_the_weights_stay_good(
    build: Build, data: TrainingData, settings: Settings
) -> None:
    network = build(METHODS[2])
    watcher = _Poison(network, "network.stages.1.0.conv1.weight", 1, 2, 3e38)
    with pytest.raises(NotFiniteError, match=r"step 3, .*: the output of layer network\.stages\.1\.0\.conv1 is not finite; no check"):
        train(network, data, settings, watcher)
    assert all(value.isfinite().all() for value in network.graph.state_dict().values())


def test_a_mixed_batch_that_is_not_finite_is_traced_under_the_same_mixing(
    build: Build, data: TrainingData, settings: Settings, mixings: list[tuple[float, list[int]] | None]
) -> None:
    settings = _with(settings, mixup=Mixup(alpha=6.0))
    network = build(METHODS[2])
    insert_mixup(network.graph, settings.training.mixup)
    with pytest.raises(NotFiniteError, match=r"step 3, .*: the output of layer network\.stages\.1\.0\.conv1 is not finite"):
        train(network, data, settings, _Poison(network, "network.stages.1.0.conv1.weight", 1, 2, 3e38))
    assert len(mixings) == 4
    assert None not in mixings
    assert mixings[3] == mixings[2] != mixings[1]


@pytest.mark.parametrize("interrupted", [False, True])
def test_bad_weights_are_never_written(build: Build, data: TrainingData, settings: Settings, interrupted: bool) -> None:
    """The last step of an epoch, and the one before Ctrl-C, have no later loss that would show
    it."""
    network = build(METHODS[2])

    class PoisonThenSignal(_Poison):
        def step_done(self, epoch: int, step_in_epoch: int, loss: float) -> None:
            super().step_done(epoch, step_in_epoch, loss)
            if interrupted and (epoch, step_in_epoch) == self.at:
                os.kill(os.getpid(), signal.SIGINT)

    step = 2 if interrupted else 4
    with pytest.raises(NotFiniteError, match=f"step {step + 5}, .* weight of layer network.stages.0.0.conv1"):
        train(network, data, settings, PoisonThenSignal(network, "network.stages.0.0.conv1.weight", 2, step, float("inf")))
    kept = read_checkpoint(settings.folder.last_checkpoint)
    assert kept.position["step"] == 4
    assert all(value.isfinite().all() for value in kept.weights.values())


def test_a_rate_that_is_far_too_high_ends_with_the_error(build: Build, data: TrainingData, settings: Settings) -> None:
    with pytest.raises(NotFiniteError, match="diverged in epoch 1"):
        train(build(METHODS[2]), data, _with(settings, learning_rate=1e20))


def test_the_watcher_hears_of_everything(build: Build, data: TrainingData, settings: Settings) -> None:
    heard: list[object] = []

    class Listening:
        def run_started(self, num_epochs: int, steps_per_epoch: int, steps_done: int) -> None:
            heard.append((num_epochs, steps_per_epoch, steps_done))

        def statistics_frozen(self, step: int, test_accuracy: float) -> None:
            heard.append((step, test_accuracy))

        def epoch_started(self, epoch: int) -> None:
            heard.append(epoch)

        def step_done(self, epoch: int, step_in_epoch: int, loss: float) -> None:
            heard.append(f"{epoch}.{step_in_epoch}")

        def epoch_done(self, record: EpochRecord) -> None:
            heard.append(record)

    settings = _with(settings, epochs=1)
    history = train(build(METHODS[0]), data, settings, Listening())
    assert heard == [(1, 4, 0), 1, "1.1", "1.2", "1.3", "1.4", history.records[0]]


def test_training_learns(build: Build, data: TrainingData, settings: Settings) -> None:
    """The same batch, repeated, is learnt by heart."""

    class Same:
        steps_per_epoch = 15

        def epoch(self, epoch: int, first_step: int = 0) -> object:
            return (next(iter(data.training.epoch(0))) for _ in range(first_step, 15))

    settings = replace(settings, training=Training(epochs=2, learning_rate=0.05, device="cpu"))
    only = TrainingData(Same(), data.test, image_width=8)  # type: ignore[arg-type]
    first, last = train(build(METHODS[0]), only, settings).records
    assert last.train_loss < first.train_loss / 2
    assert last.train_accuracy > 0.9
