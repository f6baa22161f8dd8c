"""Rebuild a bundle's graphs from its config and stored weights.

Takes an opened bundle; returns the training graph, its fold, the grid and the stored integers.
Contradictions within the bundle are a DamagedError.
"""

import copy
import functools
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

import safetensors.torch
import torch
from torch import nn
from torch.fx import GraphModule

from deploy.runners.forms import Form, MissingForm
from deploy.runners.pt2 import ProgramForm, from_exported
from deploy.runners.runner import TensorSpec
from deploy.runners.runtimes import TORCH
from deploy.runners.torch import GraphForm, graph_form
from deploy.verify.verdict import FrozenStatistics, NotFoldablePart, TrainingOnlyPart
from export.bundle import CONFIG, EXACT_TRAINING_WEIGHTS, EXACT_WEIGHTS, TRAINING_WEIGHTS, WEIGHTS, Bundle
from export.errors import DamagedError, UsageError
from export.exact.grid import GridGraph, folded_from_integers, integers_of
from export.graph.fold import fold
from export.graph.layers import TrainingPart, not_foldable_parts, training_only_parts
from export.graph.parts import trained_layers
from export.onnx import operations_beyond_plain, program_of
from pipeline.bundle.chain import EVALUATION, FOLDED, REFERENCE, TRAINING, Graphs
from pipeline.bundle.contents import image_shape_of, spec_of
from pipeline.config import Config
from pipeline.methods.statistics import freeze_statistics, is_frozen
from pipeline.networks import is_of_the_user
from pipeline.training.diagnosis import layer_figures
from pipeline.training_graph import ImageFacts, grid_of, training_graph


@dataclass(frozen=True, kw_only=True)
class RebuiltModel:
    """What a bundle's files make, and what is known about it."""

    graphs: Graphs
    exact_graphs: Graphs | None
    beyond_plain: Counter[str]
    training_only: tuple[TrainingOnlyPart, ...]
    not_foldable: tuple[NotFoldablePart, ...]
    filters: tuple[Mapping[str, object], ...]
    num_parameters: int


def rebuilt_model(bundle: Bundle, config: Config, network: str | None, frozen: FrozenStatistics | None) -> RebuiltModel:
    """Rebuild everything that needs PyTorch, from the bundle's config and weights alone.

    `network` names code that the user trusts to build the network.
    """
    graph, device = rebuilt_training_graph(bundle, config, network), _device_of(bundle)
    exact_graph = copy.deepcopy(graph) if bundle.has(EXACT_WEIGHTS) else None
    if frozen is not None:
        freeze_statistics(graph)
    folded = fold(graph)
    load_weights(folded, bundle, WEIGHTS)
    here = _folded_here(bundle, device)
    return RebuiltModel(
        graphs=_float_graphs(graph, folded, _ends(bundle), device, folded_here=here),
        exact_graphs=None if exact_graph is None else _exact_graphs(bundle, config, exact_graph, None if here else bundle.manifest.device),
        beyond_plain=operations_beyond_plain(graph),
        training_only=_training_only(graph, bundle.manifest.training_precision, frozen),
        not_foldable=tuple(NotFoldablePart(name=name, what=part.summary) for name, part in not_foldable_parts(graph).items()),
        filters=tuple(layer_figures(trained_layers(graph), config.training.deflated_below)),
        num_parameters=sum(parameter.numel() for parameter in graph.parameters()),
    )


def _ends(bundle: Bundle) -> tuple[TensorSpec, TensorSpec]:
    return spec_of(bundle.manifest.input), spec_of(bundle.manifest.output)


def _float_graphs(graph: GraphModule, folded: GraphModule, ends: tuple[TensorSpec, TensorSpec], device: str, *, folded_here: bool) -> Graphs:
    """Return the forms in float.

    `folded` has the stored weights and `graph` those of training. The function is that of the
    weights of training.
    """
    training, evaluation = copy.deepcopy(graph).train(), copy.deepcopy(graph).eval()
    for part in training_only_parts(training).values():
        part.active = is_frozen(part)  # frozen parts stay as training leaves them: they must make no difference
    exported = _exporter(ends[0])
    of_training = replace(graph_form(REFERENCE, fold(graph), ends, "cpu"), exported=exported)
    return Graphs(
        training=graph_form(TRAINING, training, ends, device, gradients=True),
        evaluation=graph_form(EVALUATION, evaluation, ends, device),
        folded=replace(graph_form(FOLDED, folded, ends, device), exported=exported),
        reference=of_training.float64(),
        source=of_training,
        budget_from=TRAINING,
        folded_here=folded_here,
    )


def _exact_graphs(bundle: Bundle, config: Config, graph: GraphModule, rounded_on: str | None) -> Graphs:
    """Return the forms on the grid, which have the same bits from the training graph on.

    `rounded_on` is the device that rounded the integers, if it is of another kind than this one.
    """
    grid, device = _rebuilt_grid(bundle, config, graph), _device_of(bundle)
    ends, exact = _ends(bundle), folded_from_integers(grid, _stored_integers(bundle, grid))
    training, evaluation = copy.deepcopy(grid.graph).train(), copy.deepcopy(grid.graph).eval()
    of_graphs: list[Form] = [
        _plainly_summed(graph_form(f"exact {TRAINING}", training, ends, device, gradients=True)),
        _plainly_summed(graph_form(f"exact {EVALUATION}", evaluation, ends, device)),
    ]
    if rounded_on is not None:
        # Weights such as e^g have other bits on another kind of device, so the nearest integer may
        # differ.
        reason = f"its integers were rounded on {rounded_on}, and another kind of device may round to others; verify it there"
        of_graphs = [MissingForm(runtime=TORCH, device=form.device, reason=reason) for form in of_graphs]
    folded = _plainly_summed(graph_form(f"exact {FOLDED}", exact, ends, device))
    return Graphs(
        training=of_graphs[0],
        evaluation=of_graphs[1],
        folded=folded,
        reference=graph_form(f"exact {REFERENCE}", exact, ends, "cpu").float64(),
        budget_from=FOLDED,
    )


def _plainly_summed(form: GraphForm) -> GraphForm:
    return replace(form, plain_sums=True)


def _exporter(image: TensorSpec) -> "functools._lru_cache_wrapper[Form]":
    """Return an exporter that exports each graph once, however many links are examined."""
    channels, height, width = (int(size or 0) for size in image.shape[1:])

    @functools.cache
    def exported(module: GraphModule) -> Form:
        return ProgramForm(program=from_exported(program_of(copy.deepcopy(module).cpu(), (channels, height, width))))

    return exported


def _rebuilt_grid(bundle: Bundle, config: Config, graph: GraphModule) -> GridGraph:
    """Return the exact training graph.

    It comes from the bundle's config, its rebuilt training graph and the weights of the exact
    stage.
    """
    grid = grid_of(graph, config, image_shape_of(bundle))
    load_weights(grid.graph, bundle, EXACT_TRAINING_WEIGHTS)
    for step in (quantiser.step.item() for members in grid.groups.values() for quantiser in members):
        if not (0 < step < math.inf and math.frexp(step)[0] == 0.5):
            raise DamagedError(f"{bundle.folder / EXACT_TRAINING_WEIGHTS} has the step {step}, expected a power of two; export the bundle again")
    return grid


def _stored_integers(bundle: Bundle, grid: GridGraph) -> dict[str, torch.Tensor]:
    """Return the stored integers and their steps, each with the type and shape that the network
    has."""
    found, expected = _tensors(bundle, EXACT_WEIGHTS), integers_of(grid)
    for name in sorted(found.keys() | expected.keys()):
        told, wanted = (_kind(tensors.get(name)) for tensors in (found, expected))
        if told != wanted:
            raise DamagedError(f"{bundle.folder / EXACT_WEIGHTS}: {name} is {told}, expected {wanted}; export the bundle again")
    return found


def _kind(tensor: torch.Tensor | None) -> str:
    if tensor is None:
        return "not there"
    return f"{str(tensor.dtype).removeprefix('torch.')}, {' x '.join(map(str, tensor.shape))}"


def rebuilt_training_graph(bundle: Bundle, config: Config, trusted_network: str | None) -> GraphModule:
    """Return the training graph, from the bundle's config and training weights.

    A bundle never names code to import: a network of the user's own is rebuilt only if the user
    names it.
    """
    name = config.network.name
    if is_of_the_user(name) and name != trusted_network:
        raise UsageError(
            f"{bundle.folder} was trained on {name}, code that a bundle may not import; to run it from your own files, add --network {name}"
        )
    graph = training_graph(config, _image_facts(bundle)).graph
    load_weights(graph, bundle, TRAINING_WEIGHTS)
    return graph


def _image_facts(bundle: Bundle) -> ImageFacts:
    """Return what the manifest says about the images; their normalisation is among the weights."""
    shape = image_shape_of(bundle)
    return ImageFacts(shape, len(bundle.manifest.classes), (0.0,) * shape[0], (1.0,) * shape[0])


def _device_of(bundle: Bundle) -> str:
    """Return the device on which the graph was trained and folded, if this machine has it."""
    return bundle.manifest.device if torch.cuda.is_available() and bundle.manifest.device.startswith("cuda") else "cpu"


def _folded_here(bundle: Bundle, device: str) -> bool:
    """Return whether the fold was made on this kind of device.

    A fold has the bits of its device: e^g rounds differently on another kind.
    """
    return torch.device(bundle.manifest.device).type == torch.device(device).type


def _training_only(graph: GraphModule, precision: str, frozen: FrozenStatistics | None) -> tuple[TrainingOnlyPart, ...]:
    def off_since(part: TrainingPart) -> int | None:
        return frozen.since_step if frozen is not None and is_frozen(part) else None

    found = training_only_parts(graph).items()
    parts = [TrainingOnlyPart(name=name, kind=part.kind, what=part.summary, off_since_step=off_since(part)) for name, part in found]
    if precision != "float32":
        parts.append(TrainingOnlyPart(name="precision", kind="precision", what=f"the training steps computed in {precision}"))
    return tuple(parts)


def _tensors(bundle: Bundle, name: str) -> dict[str, torch.Tensor]:
    try:
        return safetensors.torch.load(bundle.read(name))
    except safetensors.SafetensorError as error:
        raise DamagedError(f"{bundle.folder / name} is not a safetensors file: {error}; export the bundle again") from error


def load_weights(graph: nn.Module, bundle: Bundle, name: str) -> None:
    tensors = _tensors(bundle, name)
    try:
        graph.load_state_dict(tensors, strict=True)
    except RuntimeError as error:
        first = str(error).splitlines()[1].strip()
        raise DamagedError(f"{bundle.folder / name} does not fit the network of {CONFIG}: {first}; export the bundle again") from error
