"""The batcher as a state machine: each request is answered once, in order, within its limits."""

import math

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from deploy.server.batcher import Batch, Batcher, Limits, Part, QueueFullError


def test_requests_share_a_batch_in_order_of_arrival() -> None:
    batcher = Batcher(Limits(8))
    first, second = batcher.offer(3, 0.0), batcher.offer(2, 0.1)
    batch = batcher.take(0.1)
    assert batch == Batch((Part(first, 0, 3), Part(second, 0, 2)))
    assert batcher.take(0.1) is None
    assert batcher.finish(batch) == [first, second]
    assert batcher.unanswered == 0


def test_a_large_request_is_split_and_answered_once() -> None:
    batcher = Batcher(Limits(4))
    number = batcher.offer(10, 0.0)
    batches = [batcher.take(0.0) for _ in range(3)]
    assert [batch and batch.parts for batch in batches] == [(Part(number, 0, 4),), (Part(number, 4, 4),), (Part(number, 8, 2),)]
    assert [batcher.finish(batch) for batch in batches if batch] == [[], [], [number]]


def test_a_batch_waits_for_others_until_the_delay_is_over() -> None:
    batcher = Batcher(Limits(4, max_queue_delay=0.5))
    batcher.offer(1, 10.0)
    assert batcher.take(10.4) is None
    assert batcher.next_batch_at() == 10.5
    batcher.offer(3, 10.4)
    full = batcher.take(10.4)
    assert full is not None
    assert full.rows == 4


def test_a_full_queue_refuses_and_computing_makes_room() -> None:
    batcher = Batcher(Limits(1, max_queue_size=2))
    batcher.offer(1, 0.0)
    batcher.offer(1, 0.0)
    with pytest.raises(QueueFullError):
        batcher.offer(1, 0.0)
    batcher.take(0.0)
    batcher.offer(1, 0.0)


def test_an_expired_request_is_not_computed_and_its_late_result_is_ignored() -> None:
    batcher = Batcher(Limits(2))
    number = batcher.offer(4, 0.0, deadline=1.0)
    batch = batcher.take(0.0)
    assert batch is not None
    assert batcher.expire(0.9) == []
    assert batcher.expire(1.0) == [number]
    assert batcher.take(1.0) is None
    assert batcher.finish(batch) == []
    assert batcher.next_deadline() == math.inf


def test_memory_does_not_grow_while_workers_hang() -> None:
    batcher = Batcher(Limits(1, max_queue_size=4))
    for moment in range(10_000):
        batcher.offer(1, moment, deadline=moment + 1)
        batcher.expire(moment + 1)
    assert len(batcher._waiting) < 200
    assert len(batcher._deadlines) < 200


@pytest.mark.parametrize("limits", [(0, 0.0, 1), (1, -1.0, 1), (1, 0.0, 0)])
def test_limits_that_make_no_sense_are_refused(limits: tuple[int, float, int]) -> None:
    with pytest.raises(ValueError, match="positive"):
        Limits(*limits)


class Machine(RuleBasedStateMachine):
    """Any order of events. Every request gets exactly one answer; rows run at most once."""

    @initialize(size=st.integers(1, 9), delay=st.sampled_from([0.0, 2.0]), queue=st.integers(1, 6))
    def start(self, size: int, delay: float, queue: int) -> None:
        self.limits = Limits(size, delay, queue)
        self.batcher = Batcher(self.limits)
        self.now = 0.0
        self.rows: dict[int, int] = {}
        self.ran: dict[int, list[int]] = {}
        self.answered: dict[int, str] = {}
        self.flying: list[Batch] = []

    def _answer(self, numbers: list[int], how: str) -> None:
        for number in numbers:
            assert number in self.rows
            assert number not in self.answered, "a second answer"
            self.answered[number] = how

    @rule(rows=st.integers(1, 20), patience=st.sampled_from([1.0, 3.0, math.inf]))
    def offer(self, rows: int, patience: float) -> None:
        waiting = self.batcher.requests_waiting
        try:
            number = self.batcher.offer(rows, self.now, self.now + patience)
        except QueueFullError:
            assert waiting >= self.limits.max_queue_size
            return
        assert waiting < self.limits.max_queue_size
        self.rows[number], self.ran[number] = rows, []

    @rule()
    def take(self) -> None:
        batch = self.batcher.take(self.now)
        if batch is None:
            return
        assert 1 <= batch.rows <= self.limits.max_batch_size
        for part in batch.parts:
            assert part.request not in self.answered, "rows of an answered request"
            self.ran[part.request] += range(part.first, part.first + part.rows)
            assert self.ran[part.request] == list(range(len(self.ran[part.request]))), "rows out of order or twice"
        self.flying.append(batch)

    @rule(good=st.booleans())
    def land(self, good: bool) -> None:
        if self.flying:
            batch = self.flying.pop(0)
            done = self.batcher.finish(batch) if good else self.batcher.fail(batch)
            if good:
                assert all(len(self.ran[number]) == self.rows[number] for number in done)
            self._answer(done, "done" if good else "failed")

    @rule(seconds=st.sampled_from([0.5, 1.0, 5.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self._answer(self.batcher.expire(self.now), "expired")

    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        if self.rows:
            number = data.draw(st.sampled_from(sorted(self.rows)))
            if self.batcher.cancel(number):
                self._answer([number], "cancelled")
            else:
                assert number in self.answered

    @invariant()
    def nothing_is_lost(self) -> None:
        if hasattr(self, "batcher"):
            assert self.batcher.unanswered == len(self.rows) - len(self.answered)
            open_rows = sum(self.rows[number] - len(self.ran[number]) for number in self.rows if number not in self.answered)
            assert self.batcher.rows_waiting == open_rows

    def teardown(self) -> None:
        if not hasattr(self, "batcher"):
            return
        self._answer(self.batcher.drain(), "drained")
        assert self.answered.keys() == self.rows.keys()
        assert self.batcher.rows_waiting == self.batcher.requests_waiting == 0


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
