"""Every section of a config, with the default and the range of each value.

Holds no values of a run and reads no files; `loading` does that.
"""

import json
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from deploy.runners.runtimes import FILE_RUNTIMES
from pipeline.config.methods import MethodOptions, NonNegative, Positive, ScaledwsOptions, Share
from pipeline.config.section import Section

Count = Annotated[int, Field(ge=1)]
Momentum = Annotated[float, Field(ge=0, lt=1)]
NonNegativeInt = Annotated[int, Field(ge=0)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Text = Annotated[str, Field(min_length=1)]
Area = Annotated[float, Field(gt=0, le=1)]
CudaDevice = Annotated[str, Field(pattern=r"^cuda:\d+$", examples=["cuda:0"])]

CYCLE_EPOCHS = 10.0
"""The length of a cycle of the schedule cyclic where none is given."""
_LEAST_ALPHA = 0.001
"""Below this, nearly every draw from Beta(alpha, alpha) is 0 or 1, so nothing is mixed."""


class Augment(Section):
    """Random changes to training images, drawn per sample on the device."""

    flip: bool = False
    """Mirror half of the images left to right."""
    crop_padding: NonNegativeInt = 0
    """Pad with black by this many pixels, then crop back at a random place."""
    rotation: Annotated[float, Field(ge=0, le=180)] = 0.0
    """Turn by a random angle of up to this many degrees either way: nearest pixel, black
    corners."""
    resized_crop: tuple[Area, Area] | None = None
    """imagefolder: cut out a random part and scale it to image_size. The two numbers are the least
    and the largest share of the image's area; the aspect ratio is 3:4 to 4:3. [0.08, 1] is usual
    for ImageNet. Each image is read again in each epoch."""

    @model_validator(mode="after")
    def _areas_rise(self) -> "Augment":
        if self.resized_crop is not None and self.resized_crop[0] > self.resized_crop[1]:
            raise ValueError(f"resized_crop takes the least share of the area, then the largest, got {list(self.resized_crop)}")
        return self


DATA_SETS = {
    "digits": "pipeline.data.digits:read",
    "cifar10": "pipeline.data.cifar:read_cifar10",
    "cifar100": "pipeline.data.cifar:read_cifar100",
    "svhn": "pipeline.data.svhn:read",
    "imagefolder": "pipeline.data.imagefolder:read",
}
"""The data sets, and the function that reads each. Its module is imported when it is needed:
torchvision and scikit-learn take seconds, in each worker too."""
if TYPE_CHECKING:
    DataSetName = str
else:
    DataSetName = Literal[tuple(DATA_SETS)]


_DATA_READ_BY = {
    "root": ("imagefolder", "cifar10", "cifar100", "svhn"),
    "download": ("cifar10", "cifar100", "svhn"),
    "image_size": ("imagefolder",),
    "color": ("imagefolder",),
    "sixteen_bits": ("imagefolder",),
}
"""The data sets that read each field which others ignore."""


class Data(Section):
    """What is trained and tested on."""

    name: DataSetName = "digits"
    """digits: scikit-learn's 1,797 handwritten digits, built in. imagefolder:
    ROOT/train/CLASS/*.png and ROOT/test/..."""
    root: Text = "data"
    """imagefolder: the folder that holds train/ and test/ (or val/). cifar10, cifar100, svhn: the
    folder that the data set is kept in."""
    download: bool = False
    """Fetch cifar10, cifar100 or svhn if it is not under root."""
    extra: bool = False
    """svhn: train on the 531,131 images of its extra split as well."""
    batch_size: Count = 128
    image_size: Count | None = None
    """imagefolder: scale the centre square of each image to this height and width. None: all images
    must have one size."""
    resize: Count | None = None
    """imagefolder: for testing, scale the shorter side of each image to this and cut the centre
    image_size out of it (256 and 224 are usual for ImageNet). None: the centre square, scaled."""
    color: Literal["auto", "rgb", "gray"] = "auto"
    """imagefolder: auto takes gray only where every image is gray."""
    sixteen_bits: Literal["refuse", "high_byte"] = "refuse"
    """imagefolder: whether files with 16 bits per channel are refused, or read without the lower 8
    bits."""
    normalisation: Literal["centred", "dataset", "unit", "imagenet", "cifar100"] | tuple[tuple[float, ...], tuple[float, ...]] = "centred"
    """centred: (p - 128) / 64, exact in floating point. dataset: the mean and deviation of the data
    set. unit: p / 255, with no mean subtracted (EquiNorm). imagenet: mean and deviation of ImageNet
    (CZMIG's code uses them for CIFAR-10 too). cifar100: those in MimicNorm's code. Or [[mean...],
    [deviation...]] of p / 255."""
    residence: Literal["auto", "device", "stream"] = "auto"
    """device: the whole set as bytes on the device. stream: batch by batch, with files decoded by
    workers. auto: device up to 2 GiB."""
    workers: NonNegativeInt = 2
    """Processes that decode image files. 0: no extra process."""
    augment: Augment = Augment()

    @model_validator(mode="after")
    def _normalisation_fits(self) -> "Data":
        if isinstance(self.normalisation, tuple):
            mean, deviation = self.normalisation
            if len(mean) != len(deviation) or len(mean) not in (1, 3):
                raise ValueError(f"normalisation takes 1 or 3 means and as many deviations, got {len(mean)} and {len(deviation)}")
            if min(deviation) <= 0:
                raise ValueError(f"normalisation needs deviations above 0, got {list(deviation)}")
        return self

    @model_validator(mode="after")
    def _only_what_the_data_set_has(self) -> "Data":
        if self.extra and self.name != "svhn":
            raise ValueError(f"extra: true is for svhn, which has an extra split; {self.name} has none")
        framing = {"resize": self.resize, "augment.resized_crop": self.augment.resized_crop}
        for key in (key for key, value in framing.items() if value is not None):
            if self.name != "imagefolder" or self.image_size is None:
                raise ValueError(f"{key} is for name: imagefolder, with the image_size that images are cut to; set both, or leave it out")
        for key, readers in _DATA_READ_BY.items():
            if getattr(self, key) != type(self).model_fields[key].default and self.name not in readers:
                raise ValueError(f"{key} is read by {' and '.join(readers)}, not by {self.name}; leave it out")
        if self.resize is not None and self.image_size is not None and self.resize < self.image_size:
            raise ValueError(f"resize {self.resize} is less than image_size {self.image_size}, which is cut out of it")
        if self.augment.resized_crop is not None and self.residence == "device":
            raise ValueError("augment.resized_crop reads each image again in each epoch, so residence: device is not possible; use auto or stream")
        return self


class Network(Section):
    """Which network, written the ordinary way, with BatchNorm."""

    name: Text = "resnet20"
    """One of `pipeline/networks`, torchvision:NAME, or my_module:my_function (called with
    num_classes and in_channels)."""


_READ_BY = {
    "milestones": ("multistep",),
    "factor": ("multistep",),
    "last": ("linear", "cosine", "monotonic", "cyclic", "one_cycle"),
    "cycle_epochs": ("cyclic", "one_cycle"),
    "cycle_foot": ("one_cycle",),
    "cycle_momentum": ("one_cycle",),
    "momentum_after_cycle": ("one_cycle",),
}
"""The schedules that read each field."""


class Schedule(Section):
    """How the learning rate goes from step to step."""

    name: Literal["constant", "multistep", "linear", "cosine", "monotonic", "cyclic", "one_cycle", "points"] = "multistep"
    """linear and cosine fall step by step and monotonic once an epoch, each to `last`. cyclic:
    triangles. one_cycle: one triangle, then down to `last`, with the momentum moving the other way.
    points: straight lines between the given points."""
    milestones: tuple[Count, ...] = ()
    """multistep: epochs after which the rate is multiplied by factor."""
    factor: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """multistep: the factor at each milestone."""
    last: Share = 0.0
    """linear, cosine, monotonic, one_cycle: the share of the rate that is reached at the end.
    cyclic: the share at the foot of a triangle."""
    cycle_epochs: Positive | None = None
    """cyclic, one_cycle: how long a triangle takes, up and down. null: 10 epochs; with one_cycle
    nine tenths of the run."""
    cycle_foot: Share = 0.04
    """one_cycle: the share of the rate at both feet of the triangle. training.learning_rate is its
    top."""
    cycle_momentum: tuple[Momentum, Momentum] = (0.95, 0.85)
    """one_cycle: the momentum at the feet and at the top of the triangle. It replaces
    training.momentum."""
    momentum_after_cycle: Momentum | None = None
    """one_cycle: the momentum after the triangle. null: the same as at its feet."""
    rate_points: tuple[tuple[NonNegative, NonNegative], ...] = ()
    """points: [epoch, share of the rate], with rising epochs. Beyond the ends the outer shares
    apply."""
    momentum_points: tuple[tuple[NonNegative, Momentum], ...] = ()
    """With any schedule: [epoch, momentum], in the same way. Without points the schedule's own
    momentum applies: training.momentum, except with one_cycle."""
    warmup_epochs: NonNegative = 0.0
    """The rate rises linearly, step by step, over this many epochs."""

    @model_validator(mode="after")
    def _milestones_and_points_rise(self) -> "Schedule":
        if list(self.milestones) != sorted(set(self.milestones)):
            raise ValueError(f"milestones must rise, got {list(self.milestones)}")
        for name, points in (("rate_points", self.rate_points), ("momentum_points", self.momentum_points)):
            epochs = [epoch for epoch, _ in points]
            if epochs != sorted(set(epochs)):
                raise ValueError(f"the epochs of {name} must rise, got {epochs}")
        if (self.name == "points") != bool(self.rate_points):
            raise ValueError("rate_points go with the schedule named points, and it needs at least one")
        if self.rate_points and not any(share for _, share in self.rate_points):
            raise ValueError("rate_points are all 0, so nothing would be learned; give one a share above 0")
        return self

    @model_validator(mode="after")
    def _nothing_is_ignored(self) -> "Schedule":
        for field, readers in _READ_BY.items():
            default = type(self).model_fields[field].default
            if self.name not in readers and getattr(self, field) != default:
                raise ValueError(f"{field} goes with {' and '.join(readers)}, not with {self.name}; leave it out, or give it {json.dumps(default)}")
        return self


class Mixup(Section):
    """Pairs of training samples, mixed as lam x + (1 - lam) x'.

    lam ~ Beta(alpha, alpha) is drawn once per batch. The losses are mixed in the same way.
    """

    alpha: Annotated[float, Field(ge=0, le=1000)] = 0.0
    """A larger value mixes more evenly. 0 switches mixup off."""
    where: Literal["input", "hidden"] = "input"
    """input: the images. hidden: manifold mixup, at the images or inside the network, at a place
    drawn again for each batch."""
    hidden_at: Literal["stages", "units"] = "stages"
    """stages: in front of the residual units at which images become smaller, as in manifold mixup's
    own code. units: in front of every unit."""

    @model_validator(mode="after")
    def _can_be_drawn(self) -> "Mixup":
        if 0 < self.alpha < _LEAST_ALPHA:
            raise ValueError(f"alpha {self.alpha} mixes nothing; give 0 to switch mixup off, or at least {_LEAST_ALPHA}")
        return self


class NoClipping(Section):
    """Gradients stay as they are."""

    name: Literal["none"]


class NormClipping(Section):
    """All gradients together are scaled down to a norm of at most `threshold`."""

    name: Literal["norm"]
    threshold: Positive = 5.0
    """T0, the largest norm in the first epoch."""
    growth: Literal["constant", "times_log", "plus_log", "over_log"] = "constant"
    """How the threshold changes with the epoch e, counted from 0. times_log: T0 (1 + ln(1 + e)).
    plus_log: T0 + ln(1 + e). over_log: T0 / (1 + ln(1 + e))."""


class AdaptiveClipping(Section):
    """The gradient of each filter is scaled down to at most `threshold` times the norm of the
    filter.

    A bias or gain counts as one filter.
    """

    name: Literal["agc"]
    threshold: Positive = 0.01
    """The largest norm of a gradient, as a share of the norm of the weights it changes."""
    eps: Positive = 1.0e-3
    """The least norm of weights that is used."""
    classifier: bool = False
    """Whether the classifier's gradients are clipped as well."""


Clipping = Annotated[NoClipping | NormClipping | AdaptiveClipping, Field(discriminator="name")]


class ModelEma(Section):
    """A running average of the weights and statistics: avg <- decay avg + (1 - decay) w after each
    step.

    The average is what is evaluated, exported and deployed.
    """

    decay: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """0 keeps no average. The average reaches back over about 1 / (1 - decay) steps."""
    warmup: bool = False
    """Whether the decay starts lower, at (1 + t) / (10 + t) after t steps, so that the first steps
    are soon forgotten."""


class FreezeStatistics(Section):
    """Training without batch statistics at the end, so that its graph equals the deployed one to
    the last bit."""

    epochs: NonNegativeInt = 0
    """The number of epochs, at the end, with frozen statistics. Before the first of them the
    statistics are recomputed over the whole training set, with images as in evaluation, and frozen.
    From then on training uses the weights that are deployed. 0: never."""


class Training(Section):
    """The training loop and its optimiser, SGD with momentum."""

    epochs: Annotated[int, Field(ge=1, le=1_000_000)] = 200
    learning_rate: Positive = 0.1
    momentum: Momentum = 0.9
    nesterov: bool = False
    accumulate: Count = 1
    """Number of batches whose mean gradient makes one step. Batch statistics remain those of each
    batch. An epoch leaves out batches that do not fill a step."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    mixup: Mixup = Mixup()
    clip: Clipping = NoClipping(name="none")
    """What is done to large gradients, after the method's own correction of them."""
    model_ema: ModelEma = ModelEma()
    seed: Seed = 0
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """auto: bfloat16 autocast where the device computes in bfloat16 and images are at least 16
    pixels wide."""
    device: Literal["auto", "cpu", "cuda"] | CudaDevice = "auto"
    """auto, cpu, cuda or cuda:N."""
    threads: Literal["auto"] | Count = "auto"
    """Number of CPU threads while training. auto: one for images under 16 pixels wide, where
    threads wait more than they work; otherwise all."""
    deterministic: bool = False
    """Use only algorithms that repeat bit for bit, where the device offers them."""
    cuda_graphs: bool = True
    """On CUDA: forward, backward and the method's rules are captured once an epoch and replayed,
    with the same bits. Steps that differ from each other, because of mixup or accumulate, are
    launched one by one."""
    channels_last: bool = True
    """The memory layout while training. Checks always use the contiguous one."""
    diagnosis: Literal["none", "epoch"] = "none"
    """epoch: after each epoch record figures of every layer (norms, means, scales, variances,
    gradients) in diagnosis.jsonl, TensorBoard and the report."""
    deflated_below: Positive = 0.05
    """In the figures of layers, a filter counts as deflated if its norm, before any scale, is below
    this."""
    schedule: Schedule = Schedule()
    freeze_statistics: FreezeStatistics = FreezeStatistics()

    @property
    def first_frozen_epoch(self) -> int | None:
        """The epoch, counted from 0, at whose start the statistics are frozen; None if they never
        are."""
        return self.epochs - self.freeze_statistics.epochs if self.freeze_statistics.epochs else None

    @model_validator(mode="after")
    def _nesterov_has_momentum(self) -> "Training":
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov looks ahead along the momentum, and momentum is 0; raise it, or set nesterov: false")
        return self

    @model_validator(mode="after")
    def _something_is_trained_before_it_is_frozen(self) -> "Training":
        if self.freeze_statistics.epochs >= self.epochs:
            frozen = self.freeze_statistics.epochs
            raise ValueError(f"freeze_statistics.epochs {frozen} must be less than epochs {self.epochs}; lower it or raise epochs")
        return self

    @model_validator(mode="after")
    def _schedule_is_within_the_epochs(self) -> "Training":
        late = [m for m in self.schedule.milestones if m >= self.epochs]
        if late:
            raise ValueError(f"milestones {late} are never reached in {self.epochs} epochs; lower them, leave them out, or raise epochs")
        if self.schedule.warmup_epochs > self.epochs:
            raise ValueError(f"warmup_epochs {self.schedule.warmup_epochs} is more than epochs {self.epochs}; lower it or raise epochs")
        if self.schedule.name == "cyclic" and (self.schedule.cycle_epochs or CYCLE_EPOCHS) / 2 > self.epochs:
            cycle = self.schedule.cycle_epochs or CYCLE_EPOCHS
            raise ValueError(f"cycle_epochs {cycle}: {self.epochs} epochs do not reach the top of a triangle; give at most {2 * self.epochs}")
        if self.schedule.name == "one_cycle" and (self.schedule.cycle_epochs or 0) > self.epochs:
            raise ValueError(f"cycle_epochs {self.schedule.cycle_epochs} is more than epochs {self.epochs}; lower it or raise epochs")
        for name, points in (("rate_points", self.schedule.rate_points), ("momentum_points", self.schedule.momentum_points)):
            if beyond := [epoch for epoch, _ in points if epoch > self.epochs]:
                raise ValueError(f"{name} at epochs {beyond} are never reached in {self.epochs} epochs; leave them out, or raise epochs")
        return self


Bits = Annotated[int, Field(ge=3, le=8)]


class ExactBits(Section):
    """The most bits that the integers of each kind of layer have.

    The certificate may require fewer.
    """

    weights: Bits = 8
    """8: even integers from -126 to 126; 7: from -62 to 62, and so on. Behind values of both signs
    never beyond 64."""
    first: Annotated[int, Field(ge=3, le=7)] = 7
    """The layers that read the image."""
    classifier: Bits = 8
    """The layer whose sums are the logits."""
    depthwise: Bits | None = None
    """null: as weights."""
    pointwise: Bits | None = None
    """1x1 convolutions. null: as weights."""
    linear: Bits | None = None
    """Linear layers in front of the classifier. null: as weights."""
    activations: Annotated[int, Field(ge=4, le=8)] = 7
    """Behind a ReLU. 7: 0 to 127. 8: 0 to 255, in which case weights reach only 64 and TensorRT's
    file rounds in float32."""


class Exact(Section):
    """The exact stage: the trained network moves to an integer grid and trains on
    (docs/exact.md)."""

    enabled: Literal["auto"] | bool = "auto"
    """auto: if the network and the method have an exact form; otherwise the verdict says why not.
    true: refuse to train if they have none."""
    epochs: NonNegativeInt = 2
    """How many epochs training goes on with the rounding in it. 0: none."""
    learning_rate: Positive = 0.004
    """The initial learning rate. It falls along a cosine to 0."""
    calibration_images: Count = 1024
    """How many training images, evenly spread, are used to choose the steps of the grid."""
    search_rounds: NonNegativeInt = 0
    """How many rounds try every step at twice and half its size. A change is kept if it brings the
    outputs on those images nearer to the float ones."""
    bits: ExactBits = ExactBits()


class Batch(Section):
    """How many images an engine takes at once."""

    min: Literal[1] = 1
    """Every engine is verified on single images."""
    best: Count = 64
    """The number of images for which TensorRT makes the engine fastest."""
    max: Annotated[int, Field(ge=32, le=2**31 - 1)] = 256
    """At least 32, because engines are verified on 32 images at once, and on verify.batch_size.
    TensorRT counts in 31 bits."""

    @model_validator(mode="after")
    def _best_is_not_above_max(self) -> "Batch":
        if self.best > self.max:
            raise ValueError(f"best {self.best} is above max {self.max}; raise max or lower best")
        return self


class Export(Section):
    """The files that come out."""

    opset: Literal[20] = 20
    """The one opset that every supported runtime reads."""
    tensorrt: Literal["auto"] | bool = "auto"
    """auto: engines in float32, and exact ones if there is an exact form, provided that TensorRT
    and a GPU are available; otherwise the verdict says why not. true: refuse to train if they are
    not available. false: build none and do not mention them."""
    batch: Batch = Batch()


if TYPE_CHECKING:
    RuntimeName = str
else:
    RuntimeName = Literal[FILE_RUNTIMES]  # from the table of runtimes, so that a new one is accepted here too


class Verify(Section):
    """What the exported model is checked on, and where."""

    runtimes: tuple[RuntimeName, ...] = ("onnxruntime-cpu",)
    samples: Literal["test"] | Count = "test"
    """test: the whole test set. A number: that many of its first samples. Hostile inputs are always
    added."""
    batch_size: Count = 64
    """The batch size at which links are compared. PyTorch's bits depend on it, so one number is
    used for all links."""

    @model_validator(mode="after")
    def _runtimes_are_some_and_different(self) -> "Verify":
        if not self.runtimes or len(set(self.runtimes)) < len(self.runtimes):
            raise ValueError(f"runtimes takes at least one name, each once, got {list(self.runtimes)}")
        return self


class Config(Section):
    """One run, from data to bundle."""

    data: Data = Data()
    network: Network = Network()
    method: MethodOptions
    training: Training = Training()
    exact: Exact = Exact()
    export: Export = Export()
    verify: Verify = Verify()

    @model_validator(mode="after")
    def _training_fits_data_and_method(self) -> "Config":
        if self.training.mixup.alpha > 0 and self.data.batch_size < 2:
            raise ValueError("training.mixup mixes the images of a batch with each other and data.batch_size is 1; set it to 2 or more")
        if self.training.clip.name == "agc" and isinstance(self.method, ScaledwsOptions) and self.method.clip > 0:
            raise ValueError(f"method scaledws clips adaptively by itself, at {self.method.clip}; set method.clip: 0, or leave training.clip out")
        return self

    @model_validator(mode="after")
    def _engines_take_the_batch_that_is_verified(self) -> "Config":
        if self.export.tensorrt is not False and self.verify.batch_size > self.export.batch.max:
            raise ValueError(
                f"export.batch.max {self.export.batch.max} excludes verify.batch_size {self.verify.batch_size}; raise the first or lower the second"
            )
        return self


__all__ = [
    "CYCLE_EPOCHS",
    "AdaptiveClipping",
    "Augment",
    "Clipping",
    "Config",
    "Data",
    "Exact",
    "Export",
    "Mixup",
    "ModelEma",
    "Network",
    "NoClipping",
    "NormClipping",
    "Schedule",
    "Share",
    "Training",
    "Verify",
]
