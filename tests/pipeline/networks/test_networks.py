from pathlib import Path

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


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("def build(:", "cannot import 'build' from 'MODULE': it raised SyntaxError: invalid syntax at FILE:1;"),
        ("\n{}['conv']", "cannot import 'build' from 'MODULE': it raised KeyError: 'conv' at FILE:2;"),
        ("raise SystemExit", "cannot import 'build' from 'MODULE': it raised SystemExit at FILE:1;"),
        ("import no_such_thing", "it raised ModuleNotFoundError: No module named 'no_such_thing' at FILE:1;"),
        ("def build(num_classes, in_channels):\n    return {}['a\\nb']", "MODULE:build raised KeyError: 'a\\nb' at FILE:2; mend it there"),
        ("def build(num_classes, in_channels):\n    raise ValueError('one\\ntwo')", "MODULE:build raised ValueError: one two at FILE:2;"),
        (
            "from torch import nn\ndef build(num_classes, in_channels):\n    return nn.Linear(-1, 2)",
            "MODULE:build raised RuntimeError: Trying to create tensor with negative dimension -1: [2, -1] at FILE:3;",
        ),
        (
            "def build(classes):\n    pass",
            "MODULE:build is called with (num_classes=..., in_channels=...) and takes (classes): missing a required argument: 'classes';",
        ),
        (
            "from pipeline.networks import network_by_name\ndef build(num_classes, in_channels):\n    return network_by_name('smal', 1, 1)",
            "network.name: unknown network 'smal'; did you mean 'small'?",
        ),
    ],
)
def test_what_the_users_code_raises_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, code: str, message: str
) -> None:
    module = f"module_of_the_user_{abs(hash(request.node.name))}"
    (tmp_path / f"{module}.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UsageError) as caught:
        network_by_name(f"{module}:build", 10, 3)
    assert message.replace("MODULE", module).replace("FILE", str(tmp_path / f"{module}.py")) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_only_module_and_function_is_code_of_the_user() -> None:
    assert is_of_the_user("my_module:my_function")
    assert not any(is_of_the_user(name) for name in (*NETWORKS, "torchvision:resnet18"))
