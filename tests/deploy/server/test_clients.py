"""Client libraries as they are, against a real server: every answer has the validated bits."""

import asyncio
import json
import re
import subprocess
import sys
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as of_grpc
import tritonclient.grpc.aio as of_grpc_aio
import tritonclient.http as of_http
import tritonclient.http.aio as of_http_aio
from server_process import ROOT, ServerProcess, serving

from deploy.compare.bits import Array
from deploy.compare.validated import ValidatedOutputs

README = (ROOT / "README.md").read_text(encoding="utf-8")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the client's own dependencies


def given(kind: Any, rows: Array, **how: Any) -> list[Any]:
    tensor = kind.InferInput("image", list(rows.shape), "UINT8")
    tensor.set_data_from_numpy(rows, **how)
    return [tensor]


def require_bits(values: Array, expected: Array | None) -> None:
    assert expected is not None
    assert values.dtype == np.float32
    np.testing.assert_array_equal(values.view(np.uint32), expected.view(np.uint32))


@pytest.mark.parametrize("binary", [True, False], ids=["binary", "json"])
def test_tritonclient_over_http(server: ServerProcess, validated: ValidatedOutputs, binary: bool) -> None:
    with of_http.InferenceServerClient(server.url.removeprefix("http://")) as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready(server.name)
        assert client.is_model_ready(server.name, "1")
        assert client.get_server_metadata()["name"] == "samegraph"
        assert client.get_model_metadata(server.name)["parameters"]["verified"] is True
        config = client.get_model_config(server.name)
        assert (config["max_batch_size"], config["input"][0]["format"]) == (64, "FORMAT_NCHW")
        assert client.get_model_repository_index()[0]["state"] == "READY"
        output = [of_http.InferRequestedOutput("logits", binary_data=binary)]
        rows = validated.images
        result = client.infer(server.name, given(of_http, rows, binary_data=binary), outputs=output, request_id="a-1")
        assert result.get_response()["id"] == "a-1"
        require_bits(result.as_numpy("logits"), validated.exact)
        assert client.get_inference_statistics(server.name)["model_stats"][0]["inference_count"] >= len(rows)


def test_tritonclient_over_grpc(server: ServerProcess, validated: ValidatedOutputs) -> None:
    with of_grpc.InferenceServerClient(str(server.grpc)) as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready(server.name, "1")
        assert client.get_server_metadata().name == "samegraph"
        assert list(client.get_model_metadata(server.name).inputs[0].shape) == [-1, 1, 8, 8]
        config = client.get_model_config(server.name).config
        assert (config.max_batch_size, config.input[0].data_type, config.input[0].format) == (64, 2, 2)
        assert client.get_model_repository_index().models[0].state == "READY"
        result = client.infer(server.name, given(of_grpc, validated.images), request_id="a-2", client_timeout=20)
        assert result.get_response().id == "a-2"
        require_bits(result.as_numpy("logits"), validated.exact)
        assert client.get_inference_statistics().model_stats[0].inference_count >= len(validated.images)


def test_classification(server: ServerProcess, validated: ValidatedOutputs) -> None:
    assert validated.exact is not None
    best = validated.exact[0].argmax()
    with of_http.InferenceServerClient(server.url.removeprefix("http://")) as client, of_grpc.InferenceServerClient(str(server.grpc)) as other:
        rows = validated.images[:1]
        for answer in (
            client.infer(server.name, given(of_http, rows), outputs=[of_http.InferRequestedOutput("logits", class_count=3)]),
            other.infer(server.name, given(of_grpc, rows), outputs=[of_grpc.InferRequestedOutput("logits", class_count=3)]),
        ):
            texts = answer.as_numpy("logits")
            assert texts.shape == (1, 3)
            _, index, label = texts[0, 0].decode().split(":")
            assert (int(index), label) == (best, str(best))


def test_asynchronous_clients(server: ServerProcess, validated: ValidatedOutputs) -> None:
    async def ask() -> tuple[Array, Array]:
        rows = validated.images[:5]
        async with of_http_aio.InferenceServerClient(server.url.removeprefix("http://")) as client:
            first = (await client.infer(server.name, given(of_http_aio, rows))).as_numpy("logits")
        async with of_grpc_aio.InferenceServerClient(str(server.grpc)) as client:
            second = (await client.infer(server.name, given(of_grpc_aio, rows))).as_numpy("logits")
        return first, second

    assert validated.exact is not None
    for values in asyncio.run(ask()):
        require_bits(values, validated.exact[:5])


def test_a_stream_answers_in_order_and_goes_on_after_an_error(server: ServerProcess, validated: ValidatedOutputs) -> None:
    assert validated.exact is not None
    answers: list[Any] = []
    with of_grpc.InferenceServerClient(str(server.grpc)) as client:
        client.start_stream(lambda result, error: answers.append(error or result))
        client.async_stream_infer(server.name, given(of_grpc, validated.images[:2]))
        client.async_stream_infer("another", given(of_grpc, validated.images[:2]))
        client.async_stream_infer(server.name, given(of_grpc, validated.images[2:5]))
        client.stop_stream()
    first, error, last = answers
    require_bits(first.as_numpy("logits"), validated.exact[:2])
    assert "no model 'another'" in str(error)
    require_bits(last.as_numpy("logits"), validated.exact[2:5])


def test_curl_with_json_alone(server: ServerProcess, validated: ValidatedOutputs) -> None:
    """As `curl -d` sends it, with curl's default content type."""
    body = {"inputs": [{"name": "image", "datatype": "UINT8", "shape": [1, 1, 8, 8], "data": validated.images[:1].tolist()}]}
    request = urllib.request.Request(f"{server.url}/v2/models/{server.name}/infer", json.dumps(body).encode())
    with urllib.request.urlopen(request, timeout=20) as answer:
        assert answer.headers["samegraph-bits"] == "exact"
        (output,) = json.loads(answer.read())["outputs"]
    assert validated.exact is not None
    require_bits(np.array(output["data"], np.float32), validated.exact[0])


def test_the_lines_of_the_readme(server: ServerProcess) -> None:
    """With this server's port, and this Python."""
    (block,) = re.findall(r"^```bash\n(pip install 'samegraph\[serve\]'.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)
    _, serve, curl, python = block.splitlines()
    assert serve == "pipeline serve runs/quickstart/bundle"
    here = server.url.removeprefix("http://")
    answers = []
    for line in (curl, python.replace("python -c", f"{sys.executable} -W ignore -c")):
        assert "localhost:8000" in line
        answers.append(
            subprocess.run(["bash", "-c", line.replace("localhost:8000", here)], capture_output=True, text=True, check=True, timeout=60).stdout
        )
    assert len(json.loads(answers[0])["outputs"][0]["data"]) == 10
    assert answers[1].startswith("[[")


def crowd(server: ServerProcess, images: Array, expected: Array, requests: int) -> int:
    """Ask from many threads, in random sizes; return how many rows were compared."""

    def ask(seed: int) -> int:
        draw = np.random.default_rng(seed)
        compared = 0
        with of_http.InferenceServerClient(server.url.removeprefix("http://"), network_timeout=60, connection_timeout=60) as client:
            for _ in range(requests):
                rows = draw.integers(0, len(images), draw.integers(1, 12))
                values = client.infer(server.name, given(of_http, images[rows])).as_numpy("logits")
                require_bits(values, expected[rows])
                compared += len(rows)
        return compared

    with ThreadPoolExecutor(8) as pool:
        return sum(pool.map(ask, range(8)))


def test_neighbours_change_no_bits(server: ServerProcess, validated: ValidatedOutputs) -> None:
    assert validated.exact is not None
    assert crowd(server, validated.images, validated.exact, 25) > 800
    totals = server.get("/v2/models/stats")["model_stats"][0]
    assert totals["execution_count"] < totals["inference_count"], "some batches held rows of several requests"
    assert server.status("/v2/health/ready") == 200, "no recheck found a difference"


@pytest.mark.parametrize("runtime", ["onnxruntime-cpu", "openvino-cpu"])
def test_in_float_each_answer_has_the_bits_of_the_image_alone(finished_run: Path, validated: ValidatedOutputs, tmp_path: Path, runtime: str) -> None:
    options = ("--form", "float32", "--runtime", runtime, "--recheck", "0.2", "--max-queue-size", "1000")
    with serving(finished_run / "bundle", tmp_path, *options) as server:
        with of_http.InferenceServerClient(server.url.removeprefix("http://")) as client:
            alone = np.concatenate([client.infer(server.name, given(of_http, image[None])).as_numpy("logits") for image in validated.images[:64]])
        crowd(server, validated.images[:64], alone, 10)
        assert server.status("/v2/health/ready") == 200
        assert validated.difference("float32", np.concatenate([alone, validated.float32[64:]])) is None
