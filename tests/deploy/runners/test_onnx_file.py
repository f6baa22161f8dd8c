from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from deploy.runners import onnx_file
from deploy.runners.onnx_file import checked_bytes
from export.errors import DamagedError, UsageError


def model() -> onnx.ModelProto:
    """y = x + 1, and an If whose branches hold a tensor."""
    one = numpy_helper.from_array(np.ones(1, np.float32), "one")
    inner = helper.make_graph(
        [helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(np.ones(1, np.float32), "inner"))],
        "branch",
        [],
        [helper.make_tensor_value_info("c", TensorProto.FLOAT, [1])],
    )
    nodes = [
        helper.make_node("Add", ["x", "one"], ["y"]),
        helper.make_node("If", ["flag"], ["z"], then_branch=inner, else_branch=inner),
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1]), helper.make_tensor_value_info("flag", TensorProto.BOOL, [])]
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("y", "z")]
    graph = helper.make_graph(nodes, "main", inputs, outputs, [one])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def test_a_model_that_stands_for_itself_is_handed_out_byte_for_byte(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(model(), path)
    assert checked_bytes(path) == path.read_bytes()


def external_initialiser(m: onnx.ModelProto) -> None:
    m.graph.initializer[0].data_location = TensorProto.EXTERNAL


def external_in_an_inner_graph(m: onnx.ModelProto) -> None:
    m.graph.node[1].attribute[0].g.node[0].attribute[0].t.external_data.add(key="location", value="/etc/passwd")


def foreign_domain(m: onnx.ModelProto) -> None:
    m.opset_import.append(helper.make_opsetid("evil.example", 1))


def own_function(m: onnx.ModelProto) -> None:
    m.functions.append(helper.make_function("", "mine", ["a"], ["b"], [helper.make_node("Identity", ["a"], ["b"])], []))


def no_nodes(m: onnx.ModelProto) -> None:
    del m.graph.node[:]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (external_initialiser, "tensor 'one' is external data"),
        (external_in_an_inner_graph, "tensor 'inner' is external data"),
        (foreign_domain, "operations of 'evil.example'"),
        (own_function, "functions of its own ('mine')"),
        (no_nodes, "its graph has no node"),
    ],
)
def test_a_model_that_reaches_outside_itself_is_refused(tmp_path: Path, change: Callable[[onnx.ModelProto], None], message: str) -> None:
    changed = model()
    change(changed)
    path = tmp_path / "model.onnx"
    path.write_bytes(changed.SerializeToString())
    with pytest.raises(DamagedError) as caught:
        checked_bytes(path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"not a model", b"\xff" * 100])
def test_what_is_no_model_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(DamagedError, match="is not an ONNX"):
        checked_bytes(path)


def test_a_missing_and_a_far_too_large_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="is not a file"):
        checked_bytes(tmp_path / "nowhere.onnx")
    monkeypatch.setattr(onnx_file, "LARGEST_FILE", 10)
    path = tmp_path / "model.onnx"
    onnx.save(model(), path)
    with pytest.raises(DamagedError, match="at most 10"):
        checked_bytes(path)
