from pathlib import Path

import pytest
import torch
from graphs import DEFAULTS, rewritten, traced
from torch import nn

from export.errors import UsageError
from pipeline.networks import NETWORKS, is_of_the_user, network_by_name
from pipeline.networks.squeezenet import Fire

STEM = 64 * 3 * (7 * 7 - 3 * 3)
"""What a 7x7 stem has more than a 3x3 stem."""


def parameters(network: nn.Module) -> int:
    return sum(each.numel() for each in network.parameters())


def of_convolutions_and_linear(network: nn.Module) -> int:
    return sum(parameters(layer) for layer in network.modules() if isinstance(layer, (nn.Conv2d, nn.Linear)))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet20", 269_722),
        ("resnet32", 464_154),
        ("resnet44", 658_586),
        ("resnet56", 853_018),
        ("resnet110", 1_727_962),
        ("preactresnet152", 58_144_842),
        ("wrn-28-10", 36_479_194),
        ("wrn-16-8", 10_961_370),
        ("wrn-40-4", 8_949_210),
    ],
)
def test_parameter_counts_are_the_published_ones(name: str, expected: int) -> None:
    assert parameters(network_by_name(name, 10, 3)) == expected


def test_the_counts_that_papers_give_without_norms_are_those_of_convolutions_and_classifier() -> None:
    wide, deep = network_by_name("wrn20", 10, 3), network_by_name("resnet110", 10, 3)
    assert of_convolutions_and_linear(wide) == 9_720_106
    assert parameters(wide) == 9_720_106 + 8_256
    assert of_convolutions_and_linear(deep) == 1_719_216 + 650


def test_resnet110_with_czmig_has_as_many_parameters_as_its_authors() -> None:
    graph = rewritten("resnet110", (3, 32, 32), DEFAULTS["czmig"]).graph
    scales = sum(value.numel() for name, value in graph.named_parameters() if name.endswith("log_scale"))
    biases = sum(value.numel() for name, value in graph.named_parameters() if name.endswith("bias") and "classifier" not in name)
    assert (parameters(graph), scales, biases) == (1_723_914, 4_032, 16)


@pytest.mark.parametrize(
    ("ours", "theirs", "fewer"),
    [
        ("resnet18", "resnet18", STEM),
        ("resnet34", "resnet34", STEM),
        ("resnet50", "resnet50", STEM),
        ("resnet101", "resnet101", STEM),
        ("shufflenetv2_x0_5", "shufflenet_v2_x0_5", 0),
        ("shufflenetv2_x1_0", "shufflenet_v2_x1_0", 0),
        ("mobilenetv2", "mobilenet_v2", 0),
    ],
)
def test_the_forms_for_small_images_differ_from_torchvisions_in_the_stem_alone(ours: str, theirs: str, fewer: int) -> None:
    assert parameters(network_by_name(f"torchvision:{theirs}", 1000, 3)) - parameters(network_by_name(ours, 1000, 3)) == fewer


def test_vgg_is_what_the_papers_describe() -> None:
    """torchvision's convolutions without biases, because a norm follows.

    After them come 512-4096-4096-100, with dropout 0.5 twice.
    """
    for ours, theirs in (("vgg11", "torchvision:vgg11"), ("vgg16", "torchvision:vgg16")):
        network = network_by_name(ours, 100, 3)
        shapes = [layer.weight.shape for layer in network.modules() if isinstance(layer, nn.Conv2d)]
        with torch.device("meta"):
            assert shapes == [layer.weight.shape for layer in network_by_name(theirs, 100, 3).modules() if isinstance(layer, nn.Conv2d)]
        assert [(layer.in_features, layer.out_features) for layer in network.modules() if isinstance(layer, nn.Linear)] == [
            (512, 4096),
            (4096, 4096),
            (4096, 100),
        ]
        assert [layer.p for layer in network.modules() if isinstance(layer, nn.Dropout)] == [0.5, 0.5]


def test_squeezenet_has_the_fires_of_the_papers_table() -> None:
    network = network_by_name("squeezenet", 100, 3)
    fires = [layer for layer in network.children() if isinstance(layer, Fire)]
    assert [fire.squeeze.out_channels for fire in fires] == [16, 16, 32, 32, 48, 48, 64, 64]
    assert [2 * fire.expand3.out_channels for fire in fires] == [128, 128, 256, 256, 384, 384, 512, 512]


@pytest.mark.parametrize(("name", "stages"), [("resnet18", (4, 4)), ("shufflenetv2_x0_5", (4, 4)), ("mobilenetv2", (4, 4)), ("wrn20", (8, 8))])
def test_images_of_32_pixels_come_to_the_pooling_as_large_as_in_the_papers(name: str, stages: tuple[int, int]) -> None:
    pooled = [node for node in traced(name, (3, 32, 32)).graph.nodes if str(node.target).startswith("global_pool")]
    assert [tuple(node.args[0].meta["tensor_meta"].shape[2:]) for node in pooled] == [stages]


@pytest.mark.parametrize("name", [*NETWORKS, "wrn-10-1"])
def test_every_network_takes_gray_images_and_any_number_of_classes(name: str) -> None:
    with torch.device("meta"):
        assert network_by_name(name, 7, 1).eval()(torch.zeros(2, 1, 32, 32)).shape == (2, 7)


def test_torchvision_networks_take_any_number_of_channels() -> None:
    network = network_by_name("torchvision:resnet18", 7, 1)
    first = next(layer for layer in network.modules() if isinstance(layer, nn.Conv2d))
    assert first.in_channels == 1
    assert network(torch.zeros(2, 1, 64, 64)).shape == (2, 7)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet-110", "network.name: unknown network 'resnet-110'; did you mean 'resnet110'?"),
        ("resnet_18", "unknown network 'resnet_18'; did you mean 'resnet18'?"),
        ("preact-resnet-152", "did you mean 'preactresnet152'?"),
        ("shufflenet_v2_x1_0", "did you mean 'shufflenetv2_x1_0'?"),
        ("WRN28-10", "unknown network 'WRN28-10'; did you mean 'wrn-28-10'? known are small, resnet20,"),
        ("wrn_16_8", "did you mean 'wrn-16-8'?"),
        ("wide-resnet-40-2", "did you mean 'wrn-40-2'?"),
        ("wrn-28", "did you mean 'wrn-28-10'?"),
        ("wrn-28-0", "unknown network 'wrn-28-0'; did you mean 'wrn-28-10'?"),
        ("wrn-27-10", "network.name: wrn-27-10: a depth is 6 n + 4, such as 16, 22, 28 or 40, got 27; the nearest is wrn-28-10"),
        ("wrn-4-2", "got 4; the nearest is wrn-10-2"),
        ("no-such-net", "unknown network 'no-such-net'; known are small"),
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
        ("def build(num_classes, in_channels):\n    return {}['a\\nb']", "MODULE:build raised KeyError: 'a\\nb' at FILE:2; fix it there"),
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
