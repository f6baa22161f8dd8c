"""Batches that are made ahead: the same ones in the same order, and no more than there are."""

from collections.abc import Iterator

import torch

from pipeline.training.protocols import Batch, PrefetchedBatches


def _numbered(made: list[int], how_many: int) -> Iterator[Batch]:
    for number in range(how_many):
        made.append(number)
        yield torch.tensor([number]), torch.tensor([number])


def test_a_batch_is_made_when_it_is_prepared_and_handed_out_once() -> None:
    made: list[int] = []
    batches = PrefetchedBatches(_numbered(made, 3))
    batches.prepare()
    batches.prepare()
    assert made == [0]
    assert [int(images) for images, _ in batches] == [0, 1, 2]


def test_the_order_stays_when_each_is_prepared_while_the_last_is_used() -> None:
    made: list[int] = []
    batches = PrefetchedBatches(_numbered(made, 4))
    seen = []
    for images, labels in batches:
        batches.prepare()
        seen.append((int(images), int(labels), len(made)))
    assert seen == [(0, 0, 2), (1, 1, 3), (2, 2, 4), (3, 3, 4)]


def test_behind_the_last_there_is_none() -> None:
    batches = PrefetchedBatches(_numbered([], 1))
    assert len(list(batches)) == 1
    batches.prepare()
    assert next(batches, None) is None
