"""The samples farthest apart, over batches, with both rankings."""

import math

import numpy as np

from deploy.verify.worst import NUM_KEPT, WorstMeter, distances


def test_the_farthest_of_all_batches_farthest_first() -> None:
    meter = WorstMeter()
    rng = np.random.default_rng(0)
    a, shift = rng.normal(size=(40, 3)).astype(np.float32), np.zeros((40, 3), np.float32)
    for sample, size in ((33, 0.5), (2, 0.25), (17, 0.75)):
        shift[sample, 1] = size
    for start in range(0, 40, 16):
        meter.update({"y": a[start : start + 16]}, {"y": (a + shift)[start : start + 16]})
    assert [each.sample for each in meter.result] == [17, 33, 2]
    first = meter.result[0]
    assert (first.output, round(first.max_abs, 5)) == ("y", 0.75)
    assert [each for each, _ in first.before] == np.argsort(-a[17]).tolist()
    assert first.after[0] == (int((a + shift)[17].argmax()), float((a + shift)[17].max()))


def test_so_many_are_kept() -> None:
    meter = WorstMeter()
    for start in range(5):
        meter.update({"y": np.zeros((20, 1))}, {"y": np.arange(20.0)[:, None] + 100 * start})
    assert [each.sample for each in meter.result] == [99 - i for i in range(NUM_KEPT)]


def test_many_outputs_that_are_worst_on_the_same_samples_leave_room_for_others() -> None:
    meter = WorstMeter()
    apart = np.zeros((20, 1))
    apart[[3, 4], 0] = 9.0
    others = {f"y{number}": apart for number in range(6)}
    last = np.arange(20.0)[:, None] / 100
    zeros = {name: np.zeros((20, 1)) for name in (*others, "z")}
    meter.update(zeros, {**others, "z": last})
    assert [each.sample for each in meter.result] == [3, 4, 19, 18, 17, 16]


def test_equal_bits_are_nobodys_worst_and_other_bits_always_are() -> None:
    a = np.array([[0.0], [1.0], [np.nan], [np.inf]], np.float32)
    b = np.array([[-0.0], [1.0], [np.nan], [3.0]], np.float32)
    apart = distances(a, b)
    assert (apart[1], apart[2], apart[3]) == (0.0, 0.0, math.inf)
    assert 0 < apart[0] < 1e-300
    meter = WorstMeter()
    meter.update({"y": a}, {"y": b})
    assert [each.sample for each in meter.result] == [3, 0]
    assert all(each.before == each.after == () for each in meter.result)


def test_integers_and_truth_values() -> None:
    assert distances(np.array([[3], [2**60]]), np.array([[5], [2**60 + 1]]))[0] == 2.0
    assert distances(np.array([[3], [2**60]]), np.array([[5], [2**60 + 1]]))[1] > 0
    assert distances(np.array([True, False]), np.array([True, True])).tolist() == [0.0, 1.0]
