"""The options of each training method.

A new method adds its options here and to `MethodOptions` below.
"""

from typing import Annotated, Literal

from pydantic import Field

from pipeline.config.section import Section

NonNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
DropoutShare = Annotated[float, Field(ge=0, lt=1)]


class ZeroMeanOptions(Section):
    """The options that CZMI and CZMIG (Mean Shift Rejection) share.

    Filters start with zero mean and have a learned scale.
    """

    name: str
    mean_over: Literal["slice", "filter"] = "slice"
    """slice: the mean over the kernel's height and width. filter: the mean over the input channels
    too."""
    initial_scale: Annotated[float, Field(gt=0, le=100)] = 0.8
    """e^g at the start. Training starts more slowly with a smaller value; 1 may diverge in deep
    networks."""
    luma: NonNegative = 5.0e-4
    """Weight of the penalty (|V| - 1)^2 per filter, which keeps filters at unit norm."""
    classifier_luma: NonNegative = 5.0e-4
    """The same weight for the rows of the classifier."""
    noise: Share = 0.1
    """Half the width of the uniform factor around 1. 0 switches the noise off."""
    noise_at: Literal["units", "layers"] = "units"
    """units: at the input of each residual unit, as in the paper's experiments. layers: at the
    input of every layer but the first."""
    noise_per: Literal["channel", "element"] = "channel"
    """channel: one draw per sample and channel. element: one draw per value, which is slower than
    the normalisation it replaces."""
    noise_on_shortcut: bool = True
    """Whether the shortcut of a unit carries its noise as well."""
    first_layer_zero_mean: bool = False
    """Whether the slices of the first convolution start with zero mean. The paper says no, its code
    says yes."""
    first_layer_scaled: bool = False
    """Whether the first convolution has a learned scale e^g."""
    first_layer_luma: bool = False
    """Whether the penalty applies to the first convolution too."""
    classifier_scaled: bool = False
    """Whether the classifier has a learned scale e^g."""
    pointwise_zero_mean: bool = False
    """Whether 1x1 filters start with zero mean over their input channels, as in the authors'
    code."""
    biases: Literal["ends", "all"] = "ends"
    """ends: one bias after the first convolution and one on the classifier. all: every convolution
    has one."""
    slow_share: Positive = 0.25
    """Learning rate of biases and classifier, as a share of that of the other parameters (0.1
    against 0.4 in the authors' runs)."""


class CzmigOptions(ZeroMeanOptions):
    """Channel-wise zero-mean initialisation and gradients (Mean Shift Rejection), with the
    recommended defaults."""

    name: Literal["czmig"]
    zmg: Share = 0.85
    """z: the share of each slice's mean that is removed from its gradient. 0 leaves only the
    initialisation (CZMI)."""
    zmg_form: Literal["paper", "code"] = "paper"
    """paper: grad - z mean(grad). code: grad + z (grad - mean(grad)), the later form in the
    authors' file."""


class CzmiOptions(ZeroMeanOptions):
    """Channel-wise zero-mean initialisation alone.

    This is CZMIG with unchanged gradients: the paper's rows with z = 0.
    """

    name: Literal["czmi"]


class BatchnormOptions(Section):
    """The baseline: the network as it is written, with batch normalisation."""

    name: Literal["batchnorm"]
    initial_weights: Literal["drawn", "network"] = "drawn"
    """drawn: He's normal distribution. network: the weights that the network is built with, or that
    are imported into it."""
    weight_decay: NonNegative = 5.0e-4
    """L2 decay on every parameter."""


class NonormOptions(Section):
    """Every normalisation is removed; He initialisation, with biases.

    Deep networks diverge early, so use small learning rates only.
    """

    name: Literal["nonorm"]
    weight_decay: NonNegative = 5.0e-4
    """L2 decay on every parameter."""


class MimicnormOptions(Section):
    """MimicNorm: centred weights, scaled residual branches, and a norm over the logits.

    The mean of the weights is removed after each step. The norm is a BatchNorm without affine.
    """

    name: Literal["mimicnorm"]
    weight_mean: bool = True
    """Whether the mean of each filter over input channels, height and width is removed at the start
    and after each step."""
    centred: Literal["wide", "ungrouped"] = "wide"
    """Which convolutions are centred. wide: those with more than 50 inputs per filter, as on CIFAR.
    ungrouped: those with groups 1, as on ImageNet. Depthwise convolutions and linear layers never
    are."""
    gain: Literal["code", "paper"] = "code"
    """How the weights make up for what a ReLU takes from zero-mean filters. paper: 1.2112 on every
    centred weight; less behind a rectifier with a slope, by the same formula. code: 1.2 per
    convolution in the branch's scale; sqrt(1.4) on weights outside scaled branches, on their
    shortcuts and on the first layer in front of them, whatever the slope."""
    fan: Literal["in", "out"] = "in"
    """He's fan of convolutions: in, or out as in the authors' VGG for ImageNet. Linear layers use
    fan-in."""
    fan_channels: Annotated[int, Field(ge=1)] = 1
    """The least number of input channels per group that the fan-in counts. The authors'
    ShuffleNetV2 uses 4; its depthwise convolutions have 1."""
    branch_scale: Literal["code", "paper", "none"] = "code"
    """A learned scale on each residual branch that ends in a convolution. The scale of branch l
    starts at: code 1.2^k / l for k convolutions; paper 1 / sqrt(l). The start value of the code
    stays bounded in depth."""
    joined_scale: Literal["none", "code"] = "none"
    """For branches that are concatenated. code: a learned scale on the last convolution of each
    branch, and of the path from the last join to the classifier. It starts at 1.2^k for k
    convolutions, as in the authors' ShuffleNetV2."""
    shortcut_scale: Positive | None = None
    """The start of a learned scale on each shortcut that ends in a convolution. null: no scale
    (CIFAR). 1.2: the authors' ImageNet networks."""
    last_norm: bool = True
    """Whether there is a BatchNorm over the logits. A rectifier between classifier and logits is
    removed, as in the authors' networks."""
    weight_decay: NonNegative = 5.0e-4
    """L2 decay."""
    decay_on: Literal["all", "weights"] = "all"
    """all: every parameter. weights: every parameter but biases and scales."""


class EquinormOptions(Section):
    """Equilibrium normalisation (EquiNorm): filters balanced by the mean of each input channel.

    Inputs of convolutions must not be negative.
    """

    name: Literal["equinorm"]
    form: Literal["single_pass", "two_pass"] = "single_pass"
    """single_pass: the positive part is computed from the signs of the unshifted filter, as in the
    paper's experiments. two_pass: it is computed from the shifted filter, which meets the
    constraint exactly."""
    statistics: Literal["batch", "first_quarter"] = "batch"
    """Which samples the channel means are taken over. Fewer samples give the noise that large
    batches lack."""
    differentiate_statistics: bool = True
    """Whether gradients flow through the channel means into the layer's input."""
    statistics_momentum: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Share of the newest batch in the running means, which evaluation uses."""
    resample_signs: Literal["filter", "slice"] = "filter"
    """Which part of a filter must not start all positive or all negative: the whole filter, or each
    of its 2-D slices."""
    shortcuts: Literal["balanced", "plain"] = "balanced"
    """Whether convolutions on shortcuts are balanced too; the paper does not say."""
    eps: Positive = 1.0e-12
    """The least value of a divisor. The paper has none, but a channel that is always dead would
    give 0 / 0."""
    weight_decay: NonNegative = 1.0e-4
    """L2 decay."""
    decay_on: Literal["all", "weights"] = "all"
    """all: every parameter. weights: every parameter but biases and gains."""


class SkipinitOptions(Section):
    """SkipInit: no normalisation, and one learned scale per residual branch, which starts small."""

    name: Literal["skipinit"]
    initial_scale: Literal["zero", "inverse_root"] = "zero"
    """What the scales start at: zero, or 1 / sqrt(d) with d residual units."""
    dropout: DropoutShare = 0.0
    """Probability of the dropout in front of the classifier. 0: no dropout."""
    weight_decay: NonNegative = 5.0e-4
    """L2 decay."""
    decay_on: Literal["all", "weights"] = "weights"
    """all: every parameter. weights: every parameter but biases and scales."""


class WeightnormOptions(Section):
    """Weight normalisation, w = (g / |v|) v, and dropout in the residual branches.

    From the paper Training Without Batch Normalization.
    """

    name: Literal["weightnorm"]
    dropout: DropoutShare = 0.1
    """Probability of the dropout in front of the last convolution of each residual branch that ends
    in one. 0: no dropout. The paper gives neither the place nor the value."""
    weight_decay: NonNegative = 0.0
    """L2 decay; the paper mentions none."""
    decay_on: Literal["all", "weights"] = "weights"
    """all: every parameter. weights: every parameter but biases and scales."""


class ScaledwsOptions(Section):
    """Scaled weight standardisation and adaptive gradient clipping (NF-ResNets and NFNets)."""

    name: Literal["scaledws"]
    gamma: Positive = 1.71396
    """Factor on the weights that gives back the variance a ReLU takes from its input: 1.71396. 1
    gives back nothing. Behind a rectifier with a slope the factor is smaller, by the same
    formula."""
    alpha: Positive = 0.2
    """Share of each residual branch that ends in a convolution. It is applied to the weight and
    bias of that convolution."""
    beta: bool = True
    """Whether the convolutions at which a residual unit begins divide their weights by the expected
    standard deviation of their input. The expected variance is 1 behind a convolution and grows by
    alpha^2 with each unit. It starts again where a shortcut has a convolution."""
    eps: Positive = 1.0e-6
    """Added to each filter's variance."""
    clip: NonNegative = 0.01
    """Adaptive clipping: the largest norm of a unit's gradient, as a share of the norm of its
    weights. 0 switches it off."""
    clip_eps: Positive = 1.0e-3
    """The least norm of weights that clipping uses."""
    clip_classifier: bool = False
    """Whether the classifier's gradients are clipped as well."""
    weight_decay: NonNegative = 5.0e-5
    """L2 decay."""
    decay_on: Literal["all", "weights"] = "weights"
    """all: every parameter. weights: every parameter but biases and gains."""


class FixupOptions(Section):
    """Fixup: no normalisation, branches that start at zero, and scalar biases and one multiplier
    per branch."""

    name: Literal["fixup"]
    first_layer_bias: bool = False
    """Whether the first convolution has a scalar bias in front of it. The paper's rule says yes,
    its code says no."""
    slow_share: Positive = 0.1
    """Learning rate of biases and multipliers, as a share of that of the other parameters. 1: the
    rule under which MimicNorm's authors ran Fixup."""
    weight_decay: NonNegative = 5.0e-4
    """L2 decay; 1e-4 goes with mixup."""
    decay_on: Literal["all", "weights"] = "all"
    """all: every parameter. weights: every parameter but biases and multipliers."""


class GroupnormOptions(Section):
    """Every BatchNorm becomes a GroupNorm, which takes statistics of each sample over groups of
    channels.

    Cannot be folded.
    """

    name: Literal["groupnorm"]
    group_by: Literal["number", "channels"] = "number"
    """What `size` counts: groups per norm, or channels per group."""
    size: Annotated[int, Field(ge=1)] = 32
    """Number of groups or of channels. Where it does not divide a norm's channels, the next smaller
    divisor is used."""
    weight_decay: NonNegative = 5.0e-4
    """L2 decay on every parameter."""


MethodOptions = Annotated[
    CzmigOptions
    | CzmiOptions
    | MimicnormOptions
    | EquinormOptions
    | SkipinitOptions
    | WeightnormOptions
    | ScaledwsOptions
    | FixupOptions
    | BatchnormOptions
    | GroupnormOptions
    | NonormOptions,
    Field(discriminator="name"),
]
