import pytest
import torch
from torch import nn

from export.errors import UsageError
from pipeline.networks import NETWORKS, is_of_the_user, network_by_name


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("resnet20", 269_722), ("resnet32", 464_154), ("resnet44", 658_586), ("resnet56", 853_018), ("resnet110", 1_727_962)],
)
def test_parameter_counts_are_the_published_ones(name: str, parameters: int) -> None:
    assert sum(p.numel() for p in network_by_name(name, 10, 3).parameters()) == parameters


def test_torchvision_networks_take_any_number_of_channels() -> None:
    network = network_by_name("torchvision:resnet18", 7, 1)
    first = next(layer for layer in network.modules() if isinstance(layer, nn.Conv2d))
    assert first.in_channels == 1
    assert network(torch.zeros(2, 1, 64, 64)).shape == (2, 7)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet-110", "network.name: unknown network 'resnet-110'; did you mean 'resnet110'?"),
        ("torchvision:resnet-50", "torchvision has no classification network 'resnet-50'; nearest is 'resnet50'"),
        ("torchvision:fcn_resnet50", "torchvision has no classification network"),
        ("no_such_module:build", "cannot import 'build' from 'no_such_module'"),
        ("math:no_such_function", "cannot import 'no_such_function' from 'math'"),
        ("math:pi", "math:pi is a float, expected a function"),
        ("builtins:dict", "returned dict, expected a torch.nn.Module"),
    ],
)
def test_a_wrong_name_is_one_line_that_says_what_is_known(name: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        network_by_name(name, 10, 3)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_only_module_and_function_is_code_of_the_user() -> None:
    assert is_of_the_user("my_module:my_function")
    assert not any(is_of_the_user(name) for name in (*NETWORKS, "torchvision:resnet18"))
