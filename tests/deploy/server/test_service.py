"""The service with a stub behind it: answers, limits, failures, changes, doubts."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import numpy as np
import pytest
from stub_model import Gate, StubRunner, expected, images, stub_model

from deploy.compare.bits import Array
from deploy.server.counts import Counts
from deploy.server.protocol import ProtocolError
from deploy.server.service import Phase, Service, ServiceOptions


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 30))


def service(*runners: StubRunner, **options: Any) -> Service:
    made = Service(stub_model(*runners), ServiceOptions(**options), Counts(), "0")
    made.start()
    return made


async def status(work: Awaitable[Array]) -> int:
    with pytest.raises(ProtocolError) as caught:
        await work
    return caught.value.status


async def soon(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < until
        await asyncio.sleep(0.002)


def test_many_requests_of_any_size_get_their_own_rows() -> None:
    async def test() -> None:
        served = service(StubRunner(), StubRunner(), max_queue_size=500)
        sizes = np.random.default_rng(0).integers(1, 30, 300)
        given = [images(int(size), seed) for seed, size in enumerate(sizes)]
        for rows, values in zip(given, await asyncio.gather(*(served.infer(rows, None) for rows in given)), strict=True):
            np.testing.assert_array_equal(values, expected(rows))
        batches = [size for runner in served.model.runners for size in runner.batches]  # type: ignore[attr-defined]
        assert sum(batches) == sizes.sum()
        assert max(batches) == 8
        assert served.counts.totals()["rows"] == sizes.sum()
        served.stop()

    run(test)


def test_a_full_queue_is_503_with_a_time_to_come_back() -> None:
    async def test() -> None:
        gate = Gate()
        served = service(StubRunner(gate), max_queue_size=2)
        running = [asyncio.ensure_future(served.infer(images(1), None)) for _ in range(3)]
        await soon(gate.reached.is_set)
        with pytest.raises(ProtocolError) as caught:
            await served.infer(images(1), None)
        assert (caught.value.status, caught.value.headers) == (503, {"Retry-After": "1"})
        gate.opened.set()
        assert len(await asyncio.gather(*running)) == 3
        served.stop()

    run(test)


def test_a_timeout_fires_while_the_worker_is_busy_and_the_late_result_goes_nowhere() -> None:
    async def test() -> None:
        gate = Gate()
        runner = StubRunner(gate)
        served = service(runner)
        started = time.monotonic()
        assert await status(served.infer(images(1), 0.1)) == 504
        assert await status(served.infer(images(1), 0.1)) == 504
        assert time.monotonic() - started < 5
        gate.opened.set()
        rows = images(3, 5)
        np.testing.assert_array_equal(await served.infer(rows, None), expected(rows))
        assert runner.batches == [1, 3], "the second request expired in the queue and was not computed"
        served.stop()

    run(test)


def test_a_client_that_leaves_takes_its_rows_with_it() -> None:
    async def test() -> None:
        gate = Gate()
        runner = StubRunner(gate)
        served = service(runner)
        first = asyncio.ensure_future(served.infer(images(1), None))
        await soon(gate.reached.is_set)
        second = asyncio.ensure_future(served.infer(images(2), None))
        await asyncio.sleep(0.01)
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        gate.opened.set()
        await first
        assert runner.batches == [1]
        assert served.unanswered == 0
        served.stop()

    run(test)


def test_a_runtime_that_raises_once_is_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        times = iter([True])

        def raise_once(rows: Array) -> None:
            if next(times, False):
                raise RuntimeError("no memory")

        served = service(StubRunner(raise_once))
        np.testing.assert_array_equal(await served.infer(images(2), None), expected(images(2)))
        assert served.counts.totals()["retries"] == 1
        served.stop()

    with caplog.at_level(logging.ERROR, "samegraph.server"):
        run(test)
    assert "a batch failed" in caplog.text


def test_a_runtime_that_always_raises_is_500_without_a_word_of_it(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        def fail(rows: Array) -> None:
            raise RuntimeError("secret place")

        served = service(StubRunner(fail))
        with pytest.raises(ProtocolError) as caught:
            await served.infer(images(1), None)
        assert caught.value.status == 500
        assert "secret" not in caught.value.message
        served.stop()

    run(test)
    assert "secret place" in caplog.text


def test_a_worker_that_hangs_takes_readiness_away_and_the_other_goes_on() -> None:
    async def test() -> None:
        gate = Gate()
        served = service(StubRunner(gate), StubRunner(), hang=0.05)
        first = asyncio.ensure_future(served.infer(images(1), 0.3))
        second = asyncio.ensure_future(served.infer(images(1), 0.3))
        done, _ = await asyncio.wait((first, second))
        outcomes = [each.exception() for each in done]
        assert sum(isinstance(each, ProtocolError) for each in outcomes) == 1
        assert not served.ready
        assert served.live
        rows = images(2, 9)
        np.testing.assert_array_equal(await served.infer(rows, 5), expected(rows))
        gate.opened.set()
        await soon(lambda: served.ready)
        served.stop()

    run(test)


def test_a_recheck_that_gives_other_bits_takes_readiness_away(caplog: pytest.LogCaptureFixture) -> None:
    class Unsteady(StubRunner):
        """The bits depend on the batch, as a faulty kernel's do."""

        def _run(self, batch: Any) -> dict[str, Array]:
            return {"logits": super()._run(batch)["logits"] + np.float32(len(batch["image"]) - 1)}

    async def test() -> None:
        served = service(Unsteady(), recheck=1.0)
        await served.infer(images(1), None)
        await soon(lambda: served.counts.totals()["rechecked"] == 1)
        assert served.ready
        await served.infer(images(2), None)
        await soon(lambda: served.counts.totals()["recheck_different"] == 1)
        assert (served.phase, served.ready) == (Phase.DOUBTED, False)
        assert (await served.infer(images(1), None)).shape == (1, 3), "it still answers"
        served.stop()

    with caplog.at_level(logging.ERROR, "samegraph.server"):
        run(test)
    (record,) = [record for record in caplog.records if record.message == "a recheck gave other bits"]
    assert len(record.facts["request_sha256"]) == 64  # type: ignore[attr-defined]


def test_a_change_of_model_loses_no_request() -> None:
    async def test() -> None:
        served = service(max_queue_size=5000)
        before = served.model.runners[0]
        asked = [asyncio.ensure_future(served.infer(images(1, seed), None)) for seed in range(200)]
        await asyncio.sleep(0)
        changing = asyncio.ensure_future(served.replace(stub_model()))
        asked += [asyncio.ensure_future(served.infer(images(1, seed), None)) for seed in range(200, 400)]
        for seed, values in enumerate(await asyncio.gather(*asked)):
            np.testing.assert_array_equal(values, expected(images(1, seed)))
        await changing
        assert isinstance(before, StubRunner)
        assert before.closed
        assert served.counts.totals()["swaps"] == 1
        served.stop()

    run(test)


def test_draining_answers_what_is_there_and_stopping_refuses() -> None:
    async def test() -> None:
        gate = Gate()
        served = service(StubRunner(gate))
        asked = asyncio.ensure_future(served.infer(images(1), None))
        await soon(gate.reached.is_set)
        assert not await served.drain(0.05)
        assert not served.ready
        gate.opened.set()
        assert await served.drain(5)
        np.testing.assert_array_equal(await asked, expected(images(1)))
        served.stop()
        assert await status(served.infer(images(1), None)) == 503

    run(test)


def test_padding_never_reaches_the_client() -> None:
    async def test() -> None:
        runner = StubRunner()
        served = Service(stub_model(runner, sizes=(1, 4, 8)), ServiceOptions(), Counts(), "0")
        served.start()
        rows = images(3)
        np.testing.assert_array_equal(await served.infer(rows, None), expected(rows))
        assert runner.batches == [4]
        served.stop()

    run(test)
