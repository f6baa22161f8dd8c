"""Devices by name, precision, and that global switches are put back."""

import contextlib
from typing import Literal

import pytest
import torch

from export.errors import NotHereError, UsageError
from pipeline.training.device import arithmetic, autocast_type, cpu_threads, device_by_name, forget_peak_memory, peak_memory_bytes

CPU = torch.device("cpu")


def _machine_with(monkeypatch: pytest.MonkeyPatch, num_devices: int) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: num_devices > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: num_devices)


@pytest.mark.parametrize(
    ("name", "num_devices", "expected"),
    [
        ("auto", 0, "cpu"),
        ("auto", 2, "cuda:0"),
        ("cpu", 2, "cpu"),
        ("cuda", 2, "cuda:0"),
        ("cuda:1", 2, "cuda:1"),
    ],
)
def test_a_device_that_is_here(monkeypatch: pytest.MonkeyPatch, name: str, num_devices: int, expected: str) -> None:
    _machine_with(monkeypatch, num_devices)
    assert str(device_by_name(name)) == expected


@pytest.mark.parametrize(("name", "num_devices", "here"), [("cuda", 0, "has cpu;"), ("cuda:2", 2, "has cpu, cuda:0, cuda:1;")])
def test_a_device_that_is_not_here(monkeypatch: pytest.MonkeyPatch, name: str, num_devices: int, here: str) -> None:
    _machine_with(monkeypatch, num_devices)
    with pytest.raises(NotHereError, match=here):
        device_by_name(name)


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:-1", "cuda:one", "cpu:0", ""])
def test_a_device_that_is_none(name: str) -> None:
    with pytest.raises(UsageError, match="expected auto, cpu, cuda or cuda:N"):
        device_by_name(name)


@pytest.mark.parametrize(
    ("feature", "width", "expected"),
    [
        ("avx512_bf16", 32, torch.bfloat16),
        ("avx512_bf16", 16, torch.bfloat16),
        ("avx512_bf16", 15, None),
        ("bf16", 32, torch.bfloat16),
        ("avx512_vnni", 32, None),
    ],
)
def test_auto_takes_bfloat16_where_it_helps(monkeypatch: pytest.MonkeyPatch, feature: str, width: int, expected: torch.dtype | None) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {feature: True, "amx_bf16": False})
    assert autocast_type("auto", CPU, width) == expected


def test_a_precision_that_was_asked_for_is_used_whatever_the_device() -> None:
    assert autocast_type("bfloat16", CPU, 8) is torch.bfloat16
    assert autocast_type("float32", CPU, 224) is None


def _switches() -> tuple[object, ...]:
    cudnn = torch.backends.cudnn
    return (
        torch.are_deterministic_algorithms_enabled(),
        cudnn.deterministic,
        cudnn.benchmark,
        cudnn.conv.fp32_precision,  # type: ignore[attr-defined]
        torch.backends.cuda.matmul.fp32_precision,
    )


@pytest.mark.parametrize("deterministic", [False, True])
def test_switches_are_set_and_put_back(monkeypatch: pytest.MonkeyPatch, deterministic: bool) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    before = _switches()
    with contextlib.suppress(KeyError), arithmetic(deterministic=deterministic):
        inside = _switches()
        raise KeyError
    assert inside == (deterministic, deterministic, not deterministic, "ieee", "ieee")
    assert _switches() == before


def test_a_peak_is_forgotten_on_cuda_and_left_alone_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    forgotten: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", forgotten.append)
    forget_peak_memory(CPU)
    forget_peak_memory(torch.device("cuda:1"))
    assert forgotten == [torch.device("cuda:1")]


def test_peak_memory_on_a_cpu_is_that_of_the_process() -> None:
    assert 50 * 2**20 < peak_memory_bytes(CPU) < 2**40


@pytest.mark.parametrize(("threads", "width", "inside"), [("auto", 8, 1), ("auto", 32, 3), (2, 8, 2), (2, 32, 2)])
def test_small_images_get_one_thread_and_what_was_set_comes_back(threads: Literal["auto"] | int, width: int, inside: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with cpu_threads(threads, width):
            assert torch.get_num_threads() == inside
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
