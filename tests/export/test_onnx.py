import json
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from graphs import DEFAULTS, NOT_FOLDABLE, images, rewritten, step

from export.bundle import class_metadata
from export.graph.fold import fold
from export.graph.operations import plain_operators
from export.onnx import NotFoldedError, onnx_from_graph, operations_beyond_plain, require_folded_form
from pipeline.methods import METHODS

SMALL = (1, 8, 8)
FORBIDDEN = {"Exp", "Mul", "BatchNormalization", "Dropout", "Pow", "Sqrt"}


@cache
def small_file(method: str = "czmig") -> bytes:
    return onnx_from_graph(fold(rewritten("small", SMALL, DEFAULTS[method]).graph), SMALL, {"classes": class_metadata(("a", "b"))})


@pytest.mark.parametrize("method", METHODS)
def test_the_file_has_the_form_that_is_promised(method: str) -> None:
    model = onnx.load_from_string(small_file(method))
    assert model.ir_version == 10
    assert [(each.domain, each.version) for each in model.opset_import] == [("", 20)]
    (image,), (logits,) = model.graph.input, model.graph.output
    assert (image.name, image.type.tensor_type.elem_type) == ("image", onnx.TensorProto.UINT8)
    assert (logits.name, logits.type.tensor_type.elem_type) == ("logits", onnx.TensorProto.FLOAT)
    dims = [dim.dim_param or dim.dim_value for dim in image.type.tensor_type.shape.dim]
    assert isinstance(dims[0], str)
    assert dims[1:] == [1, 8, 8]
    beyond_plain = operations_beyond_plain(rewritten("small", SMALL, DEFAULTS[method]).graph)
    assert {node.op_type for node in model.graph.node} & FORBIDDEN <= beyond_plain.keys()
    assert bool(beyond_plain) == (method in NOT_FOLDABLE)
    assert not model.functions
    assert all(tensor.data_location == onnx.TensorProto.DEFAULT and not tensor.external_data for tensor in model.graph.initializer)


def test_the_list_of_plain_operations_keeps_the_forbidden_ones_out() -> None:
    assert not plain_operators() & FORBIDDEN


def test_a_graph_that_was_not_folded_is_refused() -> None:
    training = rewritten("small", SMALL, DEFAULTS["czmig"]).graph.eval()
    with pytest.raises(NotFoldedError, match="more than plain layers: operations \\['Mul'\\]"):
        onnx_from_graph(training, SMALL, {})


def test_a_free_size_behind_the_batch_is_refused() -> None:
    model = onnx.load_from_string(small_file())
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "height"
    with pytest.raises(NotFoldedError, match="the shape of image has a free size behind the batch"):
        require_folded_form(model)


def test_exporting_twice_gives_the_same_bytes() -> None:
    folded = fold(rewritten("small", SMALL, DEFAULTS["czmig"]).graph)
    assert onnx_from_graph(folded, SMALL, {"b": "1", "a": "2"}) == onnx_from_graph(folded, SMALL, {"a": "2", "b": "1"})


def test_nothing_in_the_file_tells_of_the_machine_that_made_it() -> None:
    data = small_file()
    for trace in (str(Path(torch.__file__).parent), str(Path(__file__).parent), str(Path.cwd()), "site-packages", ".py"):
        assert trace.encode() not in data


def test_metadata_is_in_the_file() -> None:
    model = onnx.load_from_string(small_file())
    assert {each.key: json.loads(each.value) for each in model.metadata_props} == {"classes": ["a", "b"]}


def test_the_weights_in_the_file_are_the_folded_ones_and_every_batch_runs() -> None:
    training = rewritten("small", SMALL, DEFAULTS["czmig"])
    step(training, images(8, SMALL))  # the exporter drops biases that are all zero
    folded = fold(training.graph)
    data = onnx_from_graph(folded, SMALL, {})
    initialisers = {each.name: onnx.numpy_helper.to_array(each) for each in onnx.load_from_string(data).graph.initializer}
    for name, parameter in folded.named_parameters():
        assert np.array_equal(initialisers[name], parameter.numpy())
    for size in (1, 2, 5):
        batch = images(size, SMALL)
        (logits,) = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"]).run(None, {"image": batch.numpy()})
        assert logits.shape == (size, 10)
        # A loose bound against gross faults. deploy/verify checks the derived budget.
        assert np.abs(logits - folded(batch).numpy()).max() < 1e-4
