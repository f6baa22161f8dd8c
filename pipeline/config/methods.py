"""The options of each training method; the method itself is the file of the same name in `pipeline/methods`.

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
    """What CZMI and CZMIG (Mean Shift Rejection) have in common: filters that start at zero mean, on a learned scale."""

    name: str
    mean_over: Literal["slice", "filter"] = "slice"
    """slice: the mean over the kernel's height and width. filter: over the input channels too."""
    initial_scale: Annotated[float, Field(gt=0, le=100)] = 0.8
    """e^g at the start. Smaller starts more slowly; 1 may diverge in deep networks."""
    luma: NonNegative = 5.0e-4
    """Weight of the penalty (|V| - 1)^2 per filter, which keeps filters at unit norm."""
    classifier_luma: NonNegative = 5.0e-4
    """The same for the rows of the classifier."""
    noise: Share = 0.1
    """Half the width of the uniform factor around 1. 0 switches it off."""
    noise_at: Literal["units", "layers"] = "units"
    """units: at the input of each residual unit, as in the paper's experiments. layers: at the input of every layer but the first."""
    noise_per: Literal["channel", "element"] = "channel"
    """channel: one draw per sample and channel. element: one per value, which is slower than what it replaces."""
    noise_on_shortcut: bool = True
    """Whether the shortcut carries a unit's noise as well."""
    first_layer_zero_mean: bool = False
    """Whether the slices of the first convolution start at zero mean. The paper says no, its code yes."""
    first_layer_scaled: bool = False
    """Whether the first convolution has an e^g."""
    first_layer_luma: bool = False
    """Whether the penalty holds for the first convolution too."""
    classifier_scaled: bool = False
    """Whether the classifier has an e^g."""
    pointwise_zero_mean: bool = False
    """Whether 1x1 filters start at zero mean over their input channels, as in the authors' code."""
    biases: Literal["ends", "all"] = "ends"
    """ends: one after the first convolution and one on the classifier. all: every convolution has one."""
    slow_share: Positive = 0.25
    """Learning rate of biases and classifier as a share of the others' (0.1 against 0.4 in the authors' runs)."""


class CzmigOptions(ZeroMeanOptions):
    """Channel-wise zero-mean initialisation and gradients (Mean Shift Rejection), recommended defaults."""

    name: Literal["czmig"]
    zmg: Share = 0.85
    """z: how much of each slice's mean is taken out of its gradient. 0 leaves the initialisation only (CZMI)."""
    zmg_form: Literal["paper", "code"] = "paper"
    """paper: grad - z mean(grad). code: grad + z (grad - mean(grad)), the later form in the authors' file."""


class CzmiOptions(ZeroMeanOptions):
    """Channel-wise zero-mean initialisation alone: CZMIG with gradients left as they are, the paper's rows with z = 0."""

    name: Literal["czmi"]


class BatchnormOptions(Section):
    """The network as it is written, with batch normalisation: the baseline."""

    name: Literal["batchnorm"]
    initial_weights: Literal["drawn", "network"] = "drawn"
    """drawn: He's normal distribution. network: those with which the network is built, or that are imported into it."""
    weight_decay: NonNegative = 5.0e-4
    """L2 decay on every parameter."""


class NonormOptions(Section):
    """Every normalisation removed, He initialisation, biases. Deep networks diverge early; small rates only."""

    name: Literal["nonorm"]
    weight_decay: NonNegative = 5.0e-4
    """L2 decay on every parameter."""


class MimicnormOptions(Section):
    """Weight mean after each step, scaled residual branches, a BatchNorm without affine over the logits (MimicNorm)."""

    name: Literal["mimicnorm"]
    weight_mean: bool = True
    """Whether each filter's mean over input channels, height and width is taken out of it, at the start and after each step."""
    centred: Literal["wide", "ungrouped"] = "wide"
    """wide: convolutions with more than 50 inputs per filter, as on CIFAR. ungrouped: with groups 1, as on ImageNet.
    Never depthwise, never linear."""
    gain: Literal["code", "paper"] = "code"
    """What a ReLU takes from zero-mean filters. paper: 1.2112 on every centred weight; less behind a rectifier with a slope, by the same formula.
    code: 1.2 per convolution in the branch's scale; sqrt(1.4) on weights outside scaled branches, their shortcuts and the first layer in
    front of them, whatever the slope."""
    fan: Literal["in", "out"] = "in"
    """He's fan of convolutions: in, or out as in the authors' VGG for ImageNet. Linear layers have fan-in."""
    fan_channels: Annotated[int, Field(ge=1)] = 1
    """The fan-in reckons with at least so many input channels per group: 4 in the authors' ShuffleNetV2, whose depthwise convolutions have 1."""
    branch_scale: Literal["code", "paper", "none"] = "code"
    """A learned scale on each residual branch that ends in a convolution; of the l-th it starts at: code 1.2^k / l, k convolutions; paper
    1 / sqrt(l). The code's stays bounded in depth."""
    joined_scale: Literal["none", "code"] = "none"
    """Where branches are concatenated. code: a learned scale on the last convolution of each, and of the way from the last join to the
    classifier, which starts at 1.2^k, k convolutions, as in the authors' ShuffleNetV2."""
    shortcut_scale: Positive | None = None
    """Where a shortcut ends in a convolution, the start of a learned scale on it. null: none (CIFAR); 1.2: the authors' ImageNet networks."""
    last_norm: bool = True
    """The BatchNorm over the logits. A rectifier between classifier and logits is taken out, as in the authors' networks."""
    weight_decay: NonNegative = 5.0e-4
    """L2 decay."""
    decay_on: Literal["all", "weights"] = "all"
    """all: every parameter. weights: not biases and scales."""


class EquinormOptions(Section):
    """Filters balanced by the mean of each input channel (equilibrium normalisation). Inputs of convolutions must not be negative."""

    name: Literal["equinorm"]
    form: Literal["single_pass", "two_pass"] = "single_pass"
    """single_pass: the positive part is reckoned from the signs of the unshifted filter, as in the paper's experiments. two_pass: from the
    shifted one, which meets the constraint exactly."""
    statistics: Literal["batch", "first_quarter"] = "batch"
    """Which samples the channel means are of; fewer give the noise that large batches lack."""
    differentiate_statistics: bool = True
    """Whether gradients flow through the channel means into the layer's input."""
    statistics_momentum: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Share of the newest batch in the running means that evaluation uses."""
    resample_signs: Literal["filter", "slice"] = "filter"
    """Which part of a filter must not start all positive or all negative: the whole filter or each of its 2-D slices."""
    shortcuts: Literal["balanced", "plain"] = "balanced"
    """Whether convolutions on shortcuts are balanced too; the paper does not say."""
    eps: Positive = 1.0e-12
    """Least value of a divisor; the paper has none, but a channel that is dead throughout would give 0 / 0."""
    weight_decay: NonNegative = 1.0e-4
    """L2 decay."""
    decay_on: Literal["all", "weights"] = "all"
    """all: every parameter. weights: not biases and gains."""


class SkipinitOptions(Section):
    """No normalisation; one learned scale per residual branch, which starts small (SkipInit)."""

    name: Literal["skipinit"]
    initial_scale: Literal["zero", "inverse_root"] = "zero"
    """What the scales start at: zero, or 1 / sqrt(d) for d residual units."""
    dropout: DropoutShare = 0.0
    """Probability of the dropout in front of the classifier; 0 leaves it out."""
    weight_decay: NonNegative = 5.0e-4
    """L2 decay."""
    decay_on: Literal["all", "weights"] = "weights"
    """all: every parameter. weights: not biases and scales."""


class WeightnormOptions(Section):
    """Weight normalisation, w = (g / |v|) v, and dropout in the residual branches (Training Without Batch Normalization)."""

    name: Literal["weightnorm"]
    dropout: DropoutShare = 0.1
    """Probability of the dropout in front of the last convolution of each residual branch that ends in one; 0 leaves it out.
    The paper gives neither place nor value."""
    weight_decay: NonNegative = 0.0
    """L2 decay; the paper mentions none."""
    decay_on: Literal["all", "weights"] = "weights"
    """all: every parameter. weights: not biases and scales."""


class ScaledwsOptions(Section):
    """Scaled weight standardisation and adaptive gradient clipping (NF-ResNets and NFNets)."""

    name: Literal["scaledws"]
    gamma: Positive = 1.71396
    """What a ReLU takes from the variance of its input, given back in the weights: 1.71396; 1 gives back nothing. Behind a rectifier with a
    slope the weights get less of it, by the same formula."""
    alpha: Positive = 0.2
    """Share of each residual branch that ends in a convolution, on the weight and bias of that convolution."""
    beta: bool = True
    """Whether the convolutions at which a residual unit begins divide by the expected standard deviation of its input, in their weights.
    The expected variance is 1 behind a convolution, grows by alpha^2 with each unit, and begins anew where a shortcut has a convolution."""
    eps: Positive = 1.0e-6
    """Added to each filter's variance."""
    clip: NonNegative = 0.01
    """Adaptive clipping: the largest norm of a unit's gradient as a share of the norm of its weights. 0 switches it off."""
    clip_eps: Positive = 1.0e-3
    """The least norm of weights that clipping reckons with."""
    clip_classifier: bool = False
    """Whether the classifier's gradients are clipped as well."""
    weight_decay: NonNegative = 5.0e-5
    """L2 decay."""
    decay_on: Literal["all", "weights"] = "weights"
    """all: every parameter. weights: not biases and gains."""


class FixupOptions(Section):
    """No normalisation: branches that start at zero, scalar biases and one multiplier per branch instead of norms (Fixup)."""

    name: Literal["fixup"]
    first_layer_bias: bool = False
    """Whether the first convolution has a scalar bias in front of it. The paper's rule says yes, its code no."""
    slow_share: Positive = 0.1
    """Learning rate of biases and multipliers as a share of the others'. 1: the rule under which MimicNorm's authors ran Fixup."""
    weight_decay: NonNegative = 5.0e-4
    """L2 decay; 1e-4 goes with mixup."""
    decay_on: Literal["all", "weights"] = "all"
    """all: every parameter. weights: not biases and multipliers."""


class GroupnormOptions(Section):
    """Every BatchNorm becomes a GroupNorm: statistics of each sample over groups of channels. Not foldable."""

    name: Literal["groupnorm"]
    group_by: Literal["number", "channels"] = "number"
    """What `size` counts: groups per norm, or channels per group."""
    size: Annotated[int, Field(ge=1)] = 32
    """Where it does not divide a norm's channels, the next smaller number that does."""
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
