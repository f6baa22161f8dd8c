"""Config files and `--set`: what is read, what is refused, and the text of each refusal."""

import json
import os
import re
from pathlib import Path
from typing import Any, get_args

import jsonschema
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from export.errors import UsageError
from pipeline.config import Config, dump_config, json_schema, load_config, parse_config
from pipeline.config.loading import json_schema_text
from pipeline.config.methods import MethodOptions, NonormOptions
from pipeline.config.sections import Augment, Data, Export, Verify
from pipeline.config.yaml_text import MAX_CHARACTERS, read_yaml, write_yaml

CONFIGS = Path(__file__).parents[3] / "configs"
CONFIG_FILES = sorted(CONFIGS.rglob("*.yaml"))
METHOD = "method: {name: czmig}\n"
METHOD_NAMES = ", ".join(options.model_fields["name"].annotation.__args__[0] for options in get_args(get_args(MethodOptions)[0]))
DATA_NAMES = ", ".join(get_args(Data.model_fields["name"].annotation))
RUNTIMES = ", ".join(get_args(get_args(Verify.model_fields["runtimes"].annotation)[0]))


def refusal(text: str, *overrides: str) -> str:
    with pytest.raises(UsageError) as caught:
        parse_config(text, "a.yaml", overrides)
    message = str(caught.value)
    assert message.isprintable()
    return message


def test_there_are_configs() -> None:
    assert CONFIGS / "quickstart.yaml" in CONFIG_FILES


@pytest.mark.parametrize("path", CONFIG_FILES, ids=lambda path: str(path.relative_to(CONFIGS)))
def test_every_config_loads_completes_in_an_editor_and_survives_the_round_trip(path: Path) -> None:
    config = load_config(path)
    assert parse_config(dump_config(config)) == config
    first = path.read_text(encoding="utf-8").splitlines()[0]
    assert (path.parent / first.removeprefix("# yaml-language-server: $schema=")).resolve() == CONFIGS / "schema.json"
    jsonschema.validate(read_yaml(path.read_text(encoding="utf-8"), str(path)).value, json_schema())


def test_the_published_schema_is_up_to_date() -> None:
    """Write it with: python -m pipeline.config > configs/schema.json"""
    assert (CONFIGS / "schema.json").read_text(encoding="utf-8") == json_schema_text()


def test_the_schema_refuses_what_the_loader_refuses_and_explains_options() -> None:
    jsonschema.Draft202012Validator.check_schema(json_schema())
    with pytest.raises(jsonschema.ValidationError, match="epoch"):
        jsonschema.validate({"method": {"name": "czmig"}, "training": {"epoch": 3}}, json_schema())
    noise = json_schema()["$defs"]["CzmigOptions"]["properties"]["noise"]
    assert noise["description"].startswith("Half the width")


def test_defaults_stand_where_nothing_is_said() -> None:
    config = parse_config(METHOD)
    assert config == Config.model_validate({"method": {"name": "czmig"}})
    assert (config.data.name, config.training.epochs, config.verify.runtimes) == ("digits", 200, ("onnxruntime-cpu",))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5e-4", 5e-4),
        ("1e-3", 1e-3),
        ("1e3", 1000.0),
        ("+.5", 0.5),
        ("2.", 2.0),
        ("1", 1),
        ("010", 10),
        ("-0", 0),
        ("true", True),
        ("no", "no"),
        ("on", "on"),
        ("1:30", "1:30"),
        ("1_000", "1_000"),
        ("0x10", "0x10"),
        ("2026-11-21", "2026-11-21"),
        ("=", "="),
        ("<<", "<<"),
        ("'5e-4'", "5e-4"),
        ("", None),
        ("~", None),
        ("[1, [2]]", [1, [2]]),
        ("{a: 1}", {"a": 1}),
    ],
)
def test_scalars_are_those_of_yaml_1_2(text: str, value: object) -> None:
    read = read_yaml(text, "x").value
    assert (read, type(read)) == (value, type(value))


def test_a_whole_number_may_stand_for_a_float_and_becomes_one() -> None:
    rate = parse_config(METHOD + "training: {learning_rate: 1}").training.learning_rate
    assert isinstance(rate, float)


MISTAKES = [
    ("", "a.yaml: empty; the shortest config is: method: {name: czmig}"),
    ("# only this", "a.yaml: empty; the shortest config is: method: {name: czmig}"),
    ("- a\n- b", 'a.yaml: got ["a", "b"], expected sections such as method: {name: czmig}'),
    (
        "{}",
        f"a.yaml: method: missing, expected a section such as {{name: czmig}}, the name being one of {METHOD_NAMES}",
    ),
    (
        "method: czmig",
        f'a.yaml:1: method: got "czmig", expected a section such as {{name: czmig}}, the name being one of {METHOD_NAMES}',
    ),
    ("method: {}", f"a.yaml:1: method.name: missing, expected one of {METHOD_NAMES}"),
    ("method: {zmg: 1}", f"a.yaml:1: method.name: missing, expected one of {METHOD_NAMES}"),
    ("method: {name: cmzig}", f'a.yaml:1: method.name: got "cmzig", expected one of {METHOD_NAMES}'),
    ("method: {name: 3}", f"a.yaml:1: method.name: got 3, expected one of {METHOD_NAMES}"),
    ("metod: {name: czmig}", "a.yaml:1: metod: unknown key, did you mean method? (and 1 more)"),
    ("method: {name: czmig, nois: 0}", "a.yaml:1: method.nois: unknown key, did you mean method.noise?"),
    ("method: {name: czmig, noise: 2}", "a.yaml:1: method.noise: got 2, expected a number, at least 0 and at most 1"),
    (
        "method: {name: czmig, noise_on_shortcut: no}",
        'a.yaml:1: method.noise_on_shortcut: got "no", expected true or false',
    ),
    (METHOD + "training:\n  epoch: 3", "a.yaml:3: training.epoch: unknown key, did you mean training.epochs?"),
    (METHOD + "epochs: 3", "a.yaml:2: epochs: unknown key, did you mean training.epochs or exact.epochs?"),
    (
        METHOD + "export: {format: onnx}",
        f"a.yaml:2: export.format: unknown key; known here: {', '.join(Export.model_fields)}",
    ),
    (
        METHOD + "training: {epochs: three}",
        'a.yaml:2: training.epochs: got "three", expected a whole number, at least 1 and at most 1000000',
    ),
    (METHOD + "training: {epochs: 3.0}", "a.yaml:2: training.epochs: got 3.0, expected a whole number, at least 1 and at most 1000000"),
    (METHOD + "training: {epochs: 1000001}", "a.yaml:2: training.epochs: got 1000001, expected a whole number, at least 1 and at most 1000000"),
    ("method: {name: czmig, initial_scale: 101}", "a.yaml:1: method.initial_scale: got 101, expected a number, above 0 and at most 100"),
    (METHOD + "training: {epochs: true}", "a.yaml:2: training.epochs: got true, expected a whole number, at least 1 and at most 1000000"),
    (
        METHOD + "training: {learning_rate: true}",
        "a.yaml:2: training.learning_rate: got true, expected a number, above 0",
    ),
    (
        METHOD + "training: {learning_rate: '1'}",
        'a.yaml:2: training.learning_rate: got "1", expected a number, above 0',
    ),
    (
        METHOD + "training: {learning_rate: .nan}",
        "a.yaml:2: training.learning_rate: got NaN, expected a number, above 0",
    ),
    (
        METHOD + "training: {momentum: 1}",
        "a.yaml:2: training.momentum: got 1, expected a number, at least 0 and below 1",
    ),
    (
        METHOD + "training: {seed: -1}",
        "a.yaml:2: training.seed: got -1, expected a whole number, at least 0 and below 4294967296",
    ),
    (
        METHOD + "training: {device: cuda:x}",
        'a.yaml:2: training.device: got "cuda:x", expected one of auto, cpu, cuda or text such as cuda:0',
    ),
    (
        METHOD + "training: {epochs: 3, schedule: {milestones: [1, 3]}}",
        "a.yaml:2: training: milestones [3] are never reached in 3 epochs; lower them, leave them out, or raise epochs",
    ),
    (
        METHOD + "training: {epochs: 3, freeze_statistics: {epochs: 3}}",
        "a.yaml:2: training: freeze_statistics.epochs 3 must be less than epochs 3; lower it or raise epochs",
    ),
    (
        METHOD + "training: {freeze_statistics: {epochs: -1}}",
        "a.yaml:2: training.freeze_statistics.epochs: got -1, expected a whole number, at least 0",
    ),
    (
        METHOD + "training: {schedule: {milestones: [1, -3]}}",
        "a.yaml:2: training.schedule.milestones[1]: got -3, expected a whole number, at least 1",
    ),
    (
        METHOD + "training: {schedule: {milestones: [2, 1]}}",
        "a.yaml:2: training.schedule: milestones must rise, got [2, 1]",
    ),
    (
        METHOD + "training: {schedule: {name: cosine, milestones: [1]}}",
        "a.yaml:2: training.schedule: milestones goes with multistep, not with cosine; leave it out, or give it []",
    ),
    (
        METHOD + "training: {schedule: {cycle_epochs: 5}}",
        "a.yaml:2: training.schedule: cycle_epochs goes with cyclic and one_cycle, not with multistep; leave it out, or give it null",
    ),
    (
        METHOD + "training: {epochs: 3, schedule: {name: points, rate_points: [[0, 1], [4, 0]]}}",
        "a.yaml:2: training: rate_points at epochs [4.0] are never reached in 3 epochs; leave them out, or raise epochs",
    ),
    (
        METHOD + "training: {epochs: 3, schedule: {momentum_points: [[0, 0.9], [3.5, 0.8]]}}",
        "a.yaml:2: training: momentum_points at epochs [3.5] are never reached in 3 epochs; leave them out, or raise epochs",
    ),
    (
        METHOD + "training: {schedule: {momentum_points: [[0, 1]]}}",
        "a.yaml:2: training.schedule.momentum_points[0][1]: got 1, expected a number, at least 0 and below 1",
    ),
    (
        METHOD + "training: {epochs: 3, schedule: {name: one_cycle, cycle_epochs: 4}}",
        "a.yaml:2: training: cycle_epochs 4.0 is more than epochs 3; lower it or raise epochs",
    ),
    (METHOD + "training: {mixup: {alpha: -1}}", "a.yaml:2: training.mixup.alpha: got -1, expected a number, at least 0 and at most 1000"),
    (METHOD + "training: {mixup: {alpha: .nan}}", "a.yaml:2: training.mixup.alpha: got NaN, expected a number, at least 0 and at most 1000"),
    (
        METHOD + "training: {mixup: {alpha: 1e-9}}",
        "a.yaml:2: training.mixup: alpha 1e-09 mixes nothing; give 0 to switch mixup off, or at least 0.001",
    ),
    (METHOD + "training: {mixup: {where: output}}", 'a.yaml:2: training.mixup.where: got "output", expected one of input, hidden'),
    (
        METHOD + "data: {batch_size: 1}\ntraining: {mixup: {alpha: 1}}",
        "a.yaml: training.mixup mixes the images of a batch with each other and data.batch_size is 1; set it to 2 or more",
    ),
    (METHOD + "training: {clip: {name: norm, threshold: 0}}", "a.yaml:2: training.clip.threshold: got 0, expected a number, above 0"),
    (METHOD + "training: {clip: {name: agc, threshold: 0}}", "a.yaml:2: training.clip.threshold: got 0, expected a number, above 0"),
    (METHOD + "training: {clip: {name: value}}", 'a.yaml:2: training.clip.name: got "value", expected one of none, norm, agc'),
    (METHOD + "training: {clip: {threshold: 5}}", "a.yaml:2: training.clip.name: missing, expected one of none, norm, agc"),
    (
        "method: {name: scaledws}\ntraining: {clip: {name: agc}}",
        "a.yaml: method scaledws clips adaptively by itself, at 0.01; set method.clip: 0, or leave training.clip out",
    ),
    (METHOD + "training: {accumulate: 0}", "a.yaml:2: training.accumulate: got 0, expected a whole number, at least 1"),
    (METHOD + "training: {model_ema: {decay: 1}}", "a.yaml:2: training.model_ema.decay: got 1, expected a number, at least 0 and below 1"),
    (METHOD + "data: {root: ''}", 'a.yaml:2: data.root: got "", expected text that is not empty'),
    (METHOD + "data: {name: mnist}", f'a.yaml:2: data.name: got "mnist", expected one of {DATA_NAMES}'),
    (
        METHOD + 'data: {name: "a\\nb"}',
        rf'a.yaml:2: data.name: got "a\nb", expected one of {DATA_NAMES}',
    ),
    (
        METHOD + "data: {image_size: big}",
        'a.yaml:2: data.image_size: got "big", expected a whole number, at least 1 or null',
    ),
    (
        METHOD + "data: {normalisation: [[1]]}",
        "a.yaml:2: data.normalisation: got [[1]], expected one of centred, dataset, unit, imagenet, cifar100 or a list of 2 items, "
        "each a list, each item a number",
    ),
    (
        METHOD + "data: {normalisation: [[0, 0], [1, 1]]}",
        "a.yaml:2: data: normalisation takes 1 or 3 means and as many deviations, got 2 and 2",
    ),
    (
        METHOD + "data: {normalisation: [[0], [0]]}",
        "a.yaml:2: data: normalisation needs deviations above 0, got [0.0]",
    ),
    (
        METHOD + "data: {augment: flip}",
        f'a.yaml:2: data.augment: got "flip", expected a section with keys out of: {", ".join(Augment.model_fields)}',
    ),
    (
        METHOD + "data:\n  augment:\n",
        f"a.yaml:3: data.augment: got nothing, expected a section with keys out of: {', '.join(Augment.model_fields)}",
    ),
    (METHOD + "export: {opset: 21}", "a.yaml:2: export.opset: got 21, expected 20"),
    (METHOD + "verify: {runtimes: []}", "a.yaml:2: verify: runtimes takes at least one name, each once, got []"),
    (METHOD + "verify: {samples: 0}", "a.yaml:2: verify.samples: got 0, expected test or a whole number, at least 1"),
    (
        METHOD + "verify: {runtimes: onnxruntime-cpu}",
        f'a.yaml:2: verify.runtimes: got "onnxruntime-cpu", expected a list, each item one of {RUNTIMES}',
    ),
    (
        METHOD + "verify: {runtimes: [tensorflow]}",
        f'a.yaml:2: verify.runtimes[0]: got "tensorflow", expected one of {RUNTIMES}',
    ),
    (METHOD + METHOD, "a.yaml:2: not valid here: method appears twice"),
    (METHOD + "1: 2", "a.yaml:2: not valid here: a key must be a word, got 1"),
    (METHOD + "? [a]\n: 1", "a.yaml:2: not valid here: a list or a section is not allowed here"),
    (METHOD + "data: [", "a.yaml:2: not valid here: expected the node content, but found '<stream end>'"),
    (METHOD + "---\n" + METHOD, "a.yaml:2: not valid here: but found another document"),
    (METHOD + "data: &x [*x]", "a.yaml:2: not valid here: aliases (*) are not used here"),
    (
        METHOD + "data: !!python/name:os.system",
        "a.yaml:2: not valid here: the tag !!python/name:os.system is not used here",
    ),
    (METHOD + "data: !!binary aGk=", "a.yaml:2: not valid here: the tag !!binary is not used here"),
    (METHOD + "data: !!float x", "a.yaml:2: not valid here: 'x' is not a float"),
    (METHOD + "data: !!bool x", "a.yaml:2: not valid here: 'x' is not a bool"),
    (
        METHOD + "data: " + "9" * 5000,
        f"a.yaml:2: not valid here: '{'9' * 40}' is not a whole number of at most 40 digits",
    ),
    (METHOD + "data: " + "[" * 5000, "a.yaml:2: not valid here: nested too deeply"),
    (
        "data: \x07",
        'a.yaml: not YAML: unacceptable character #x0007: special characters are not allowed in "<unicode string>", position 6',
    ),
    ("#" * (MAX_CHARACTERS + 1), "a.yaml: more than 256 KiB; a config is smaller"),
]


@pytest.mark.parametrize(("text", "message"), MISTAKES, ids=range(len(MISTAKES)))
def test_a_mistake_is_one_line(text: str, message: str) -> None:
    assert refusal(text) == message


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.epochs", "--set training.epochs: expected key.path=value, such as training.epochs=3"),
        ("training..epochs=1", "--set training..epochs=1: expected key.path=value, such as training.epochs=3"),
        ("=1", "--set =1: expected key.path=value, such as training.epochs=3"),
        ("training.epochs=x", '--set training.epochs=x: training.epochs: got "x", expected a whole number, at least 1 and at most 1000000'),
        (
            "training.epochs=",
            "--set training.epochs=: training.epochs: got nothing, expected a whole number, at least 1 and at most 1000000",
        ),
        ("training.epoch=1", "--set training.epoch=1: training.epoch: unknown key, did you mean training.epochs?"),
        ("epochs=1", "--set epochs=1: epochs: unknown key, did you mean training.epochs or exact.epochs?"),
        ("method.name.x=1", '--set method.name.x=1: method.name is "czmig", not a section'),
        ("method.name=nonorm", f"a.yaml:1: method.noise: unknown key; known here: {', '.join(NonormOptions.model_fields)}"),
        (
            "training.epochs=[",
            "--set training.epochs=[: not valid here: expected the node content, but found '<stream end>'",
        ),
        (
            "training.schedule={milestones: [500]}",
            "--set training.schedule={milestones: [500]}: training: milestones [500] are never reached in 200 epochs; "
            "lower them, leave them out, or raise epochs",
        ),
    ],
)
def test_a_mistake_in_an_override_is_one_line(override: str, message: str) -> None:
    assert refusal("method: {name: czmig, noise: 0.2}", override) == message


def test_overrides_win_over_the_file_in_their_order() -> None:
    config = parse_config(
        METHOD + "training: {epochs: 3}",
        overrides=[
            "training.epochs=7",
            "training.learning_rate=5e-4",
            "training.epochs=9",
            "training.schedule.milestones=[2, 4]",
            "method={name: nonorm}",
            "data.name=cifar10",
            "data.root=a=b",
        ],
    )
    assert (config.training.epochs, config.training.learning_rate) == (9, 5e-4)
    assert (config.training.schedule.milestones, config.method.name, config.data.root) == ((2, 4), "nonorm", "a=b")


def test_overrides_leave_the_given_mapping_alone() -> None:
    given_values: dict[str, Any] = {"method": {"name": "czmig"}, "training": {"epochs": 3}}
    parse_config(given_values, overrides=["training.epochs=4"])
    assert given_values == {"method": {"name": "czmig"}, "training": {"epochs": 3}}


def test_a_mapping_names_its_source_in_errors() -> None:
    with pytest.raises(UsageError, match=r"^the test: training\.epochs: got 0, expected a whole number, at least 1 and at most 1000000$"):
        parse_config({"method": {"name": "czmig"}, "training": {"epochs": 0}}, "the test")


def test_files_that_cannot_be_read_are_one_line(tmp_path: Path) -> None:
    (latin := tmp_path / "latin.yaml").write_bytes(b"method: \xe9")
    (huge := tmp_path / "huge.yaml").write_bytes(b"#" * 4 * MAX_CHARACTERS * 2)
    os.mkfifo(fifo := tmp_path / "fifo.yaml")
    expected = {
        tmp_path / "none.yaml": "no such file; give the path of a YAML config",
        tmp_path: "not a regular file; give the path of a YAML config",
        fifo: "not a regular file; give the path of a YAML config",
        Path("/dev/zero"): "not a regular file; give the path of a YAML config",
        tmp_path / ("x" * 300): "cannot be read (File name too long); give the path of a YAML config",
        latin: "not UTF-8 text (byte 8); give a YAML config",
        huge: "more than 256 KiB; a config is smaller",
    }
    for path, message in expected.items():
        with pytest.raises(UsageError) as caught:
            load_config(path)
        assert str(caught.value) == f"{path}: {message}"


def test_a_byte_order_mark_is_no_mistake(tmp_path: Path) -> None:
    (path := tmp_path / "a.yaml").write_bytes(b"\xef\xbb\xbfmethod: {name: czmig}\ndata: {name: digits}")
    assert load_config(path).method.name == "czmig"


def test_the_dump_keeps_the_order_of_the_sections() -> None:
    dumped = dump_config(parse_config(METHOD))
    assert [line[:-1] for line in dumped.splitlines() if not line.startswith(" ")] == list(Config.model_fields)


@example("5e-4", 1e-7, 0)
@example("on", 1e22, 0)
@example("-10", -0.0, 0)
@example(".nan", 5e-324, 0)
@example("\x85 a", 0.1, 0)
@example(" a\n\n b  c " * 30, 0.1, 0)
@given(st.text(), st.floats(allow_nan=False, allow_infinity=False), st.integers(-(10**39), 10**39))
def test_whatever_is_written_is_read_back(text: str, number: float, count: int) -> None:
    values = {"text": text, "number": number, "count": count, "list": [text, number], "none": None, "yes": True}
    read = read_yaml(write_yaml(values), "x").value
    assert json.dumps(read) == json.dumps(values)


@pytest.mark.parametrize("content", ["method: {name: czmig}", "method: {name: czmig}\ndata: {batch_size: 8}"])
def test_a_file_without_a_data_set_starts_no_training(tmp_path: Path, content: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(UsageError, match=r"a\.yaml: data\.name is missing; name the data set, or let pipeline init write"):
        load_config(path)
    assert load_config(path, ["data.name=digits"]).data.name == "digits"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("{name: digits, image_size: 16}", "image_size is read by imagefolder, not by digits; leave it out"),
        ("{name: digits, root: pictures}", "root is read by imagefolder and cifar10 and cifar100 and svhn, not by digits"),
        ("{name: cifar10, color: gray}", "color is read by imagefolder, not by cifar10"),
        ("{name: imagefolder, download: true}", "download is read by cifar10 and cifar100 and svhn, not by imagefolder"),
    ],
)
def test_settings_that_a_data_set_does_not_read_are_refused(data: str, message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        parse_config(f"method: {{name: czmig}}\ndata: {data}")
