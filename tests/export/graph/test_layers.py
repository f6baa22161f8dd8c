import pytest
from torch import nn

from export.graph.layers import FilterKind, PlainDerivation, derived, filter_kind


@pytest.mark.parametrize(
    ("layer", "kind"),
    [
        (nn.Linear(4, 8), "linear"),
        (nn.Conv2d(4, 8, 3), "spatial"),
        (nn.Conv2d(4, 8, (1, 3)), "spatial"),
        (nn.Conv2d(4, 8, 1), "pointwise"),
        (nn.Conv2d(4, 8, 3, groups=2), "spatial"),
        (nn.Conv2d(4, 8, 1, groups=2), "pointwise"),
        (nn.Conv2d(4, 8, 3, groups=4), "depthwise"),
        (nn.Conv2d(4, 8, 1, groups=4), "depthwise"),
        (nn.Conv2d(1, 8, 3), "spatial"),
    ],
)
def test_a_layer_and_its_derived_form_are_of_one_kind(layer: nn.Conv2d | nn.Linear, kind: FilterKind) -> None:
    assert filter_kind(layer) == kind
    assert filter_kind(derived(layer, PlainDerivation(layer.weight.detach(), None))) == kind
