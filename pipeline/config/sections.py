"""Everything a config may say, section by section, with its default and its range."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipeline.config.base import Section
from pipeline.config.methods import MethodOptions, NonNegative, Positive, Share

Count = Annotated[int, Field(ge=1)]
NonNegativeInt = Annotated[int, Field(ge=0)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Text = Annotated[str, Field(min_length=1)]
Area = Annotated[float, Field(gt=0, le=1)]
CudaDevice = Annotated[str, Field(pattern=r"^cuda:\d+$", examples=["cuda:0"])]


class Augment(Section):
    """Random changes to training images, drawn per sample on the device."""

    flip: bool = False
    """Mirror half of the images left to right."""
    crop_padding: NonNegativeInt = 0
    """Pad with black by this many pixels, then crop back at a random place."""
    rotation: Annotated[float, Field(ge=0, le=180)] = 0.0
    """Turn by a random angle of up to this many degrees either way: nearest pixel, black corners."""
    resized_crop: tuple[Area, Area] | None = None
    """imagefolder: cut out a random part, of so much of the image's area at least and at most and 3:4 to 4:3, and scale it to image_size;
    [0.08, 1] is usual for ImageNet. Each image is read anew in each epoch."""

    @model_validator(mode="after")
    def _areas_rise(self) -> "Augment":
        if self.resized_crop is not None and self.resized_crop[0] > self.resized_crop[1]:
            raise ValueError(f"resized_crop takes the least share of the area, then the largest, got {list(self.resized_crop)}")
        return self


class Data(Section):
    """What is trained and tested on."""

    name: Literal["digits", "cifar10", "cifar100", "svhn", "imagefolder"] = "digits"
    """digits: scikit-learn's 1,797 handwritten digits, built in. imagefolder: ROOT/train/CLASS/*.png, ROOT/test/..."""
    root: Text = "data"
    """imagefolder: the folder that holds train/ and test/ (or val/). cifar10, cifar100, svhn: the folder it is kept in."""
    download: bool = False
    """Fetch cifar10, cifar100 or svhn when it is not under root."""
    extra: bool = False
    """svhn: train on the 531,131 images of its extra split as well."""
    batch_size: Count = 128
    image_size: Count | None = None
    """imagefolder: scale each image's centre square to this height and width. None: all images must have one size."""
    resize: Count | None = None
    """imagefolder: to test, scale each image's shorter side to this and cut the centre image_size out of it (256 and 224 are usual for
    ImageNet). None: the centre square, scaled."""
    color: Literal["auto", "rgb", "gray"] = "auto"
    """imagefolder: auto takes gray only where every image is gray."""
    normalisation: Literal["centred", "dataset", "unit", "imagenet", "cifar100"] | tuple[tuple[float, ...], tuple[float, ...]] = "centred"
    """centred: (p - 128) / 64, exact in floating point. dataset: the data set's own mean and deviation. unit: p / 255, no mean subtracted
    (EquiNorm). imagenet: mean and deviation of ImageNet (also what CZMIG's code takes for CIFAR-10). cifar100: those in MimicNorm's code.
    Or [[mean...], [deviation...]] of p / 255."""
    residence: Literal["auto", "device", "stream"] = "auto"
    """device: the whole set as bytes there. stream: batch by batch, files decoded by workers. auto: device up to 2 GiB."""
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
        if self.resize is not None and self.image_size is not None and self.resize < self.image_size:
            raise ValueError(f"resize {self.resize} is less than image_size {self.image_size}, which is cut out of it")
        if self.augment.resized_crop is not None and self.residence == "device":
            raise ValueError("augment.resized_crop reads each image anew in each epoch, so residence: device cannot be; take auto or stream")
        return self


class Network(Section):
    """Which network, written the ordinary way, with BatchNorm."""

    name: Text = "resnet20"
    """One of `pipeline/networks`, torchvision:NAME, or my_module:my_function (called with num_classes, in_channels)."""


class Schedule(Section):
    """How the learning rate goes from step to step."""

    name: Literal["constant", "multistep", "linear", "cosine", "monotonic", "cyclic", "points"] = "multistep"
    """linear and cosine fall step by step, monotonic once an epoch, each to `last`. cyclic: triangles. points: straight lines
    between the given points, for instance one-cycle."""
    milestones: tuple[Count, ...] = ()
    """multistep: epochs after which the rate is multiplied by factor."""
    factor: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """multistep: what each milestone multiplies by."""
    last: Share = 0.0
    """linear, cosine, monotonic: the share of the rate that is reached at the end. cyclic: the share at the foot of a triangle."""
    cycle_epochs: Positive = 10.0
    """cyclic: how long one triangle takes, up and down."""
    rate_points: tuple[tuple[NonNegative, NonNegative], ...] = ()
    """points: [epoch, share of the rate], with rising epochs; beyond the ends the outer shares hold."""
    momentum_points: tuple[tuple[NonNegative, Share], ...] = ()
    """With any schedule: [epoch, momentum], in the same way; none keeps training.momentum."""
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
        return self


class Training(Section):
    """The loop and its optimiser: SGD with momentum."""

    epochs: Annotated[int, Field(ge=1, le=1_000_000)] = 200
    learning_rate: Positive = 0.1
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    nesterov: bool = False
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    seed: Seed = 0
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """auto: bfloat16 autocast where the device computes in it and images are at least 16 pixels wide."""
    device: Literal["auto", "cpu", "cuda"] | CudaDevice = "auto"
    """auto, cpu, cuda or cuda:N."""
    threads: Literal["auto"] | Count = "auto"
    """Of the CPU, while training. auto: one for images under 16 pixels wide, where threads wait more than they work; else all."""
    deterministic: bool = False
    """Only algorithms that repeat bit for bit, where the device offers them."""
    channels_last: bool = True
    """The memory layout while training; checks always use the contiguous one."""
    schedule: Schedule = Schedule()

    @model_validator(mode="after")
    def _milestones_are_reached(self) -> "Training":
        late = [m for m in self.schedule.milestones if m >= self.epochs]
        if late:
            raise ValueError(f"milestones {late} are never reached in {self.epochs} epochs")
        if self.schedule.warmup_epochs > self.epochs:
            raise ValueError(f"warmup_epochs {self.schedule.warmup_epochs} is more than epochs {self.epochs}")
        return self


Bits = Annotated[int, Field(ge=3, le=8)]


class ExactBits(Section):
    """How many bits the integers of each kind of layer have, at most. The certificate may ask for fewer."""

    weights: Bits = 8
    """8: even integers from -126 to 126; 7: from -62 to 62, and so on. Behind values of both signs never beyond 64."""
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
    """Behind a ReLU. 7: 0 to 127. 8: 0 to 255, where weights reach 64 only, and TensorRT's file rounds in float32."""


class Exact(Section):
    """The exact stage: the trained network goes onto an integer grid and trains on there (docs/exact.md)."""

    enabled: Literal["auto"] | bool = "auto"
    """auto: where the network and the method have an exact form; the verdict says why where not. true: refuse to train where not."""
    epochs: NonNegativeInt = 2
    """How long training goes on with the rounding in it. 0: not at all."""
    learning_rate: Positive = 0.004
    """Falls along a cosine to 0."""
    calibration_images: Count = 1024
    """How many training images, evenly spread, the steps of the grid are chosen on."""
    search_rounds: NonNegativeInt = 0
    """How often every step is tried at twice and half its size, and kept where the outputs on those images come nearer to the float ones."""
    bits: ExactBits = ExactBits()


class Export(Section):
    """The files that come out."""

    opset: Literal[20] = 20
    """The one opset that every runtime here takes."""


class Verify(Section):
    """What the exported model is checked on, and where."""

    runtimes: tuple[Literal["onnxruntime-cpu", "onnxruntime-cuda"], ...] = ("onnxruntime-cpu",)
    samples: Literal["test"] | Count = "test"
    """test: the whole test set. A number: that many of its first samples. Hostile inputs are always added."""
    batch_size: Count = 64
    """The batch at which links are compared; PyTorch's bits depend on it, so it is one number for all of them."""

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


__all__ = ["Augment", "Config", "Data", "Exact", "Export", "Network", "Schedule", "Share", "Training", "Verify"]
