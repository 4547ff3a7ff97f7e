"""Images in order, in bounded memory, and one result lost for one bad image."""

import threading
import time

import numpy as np
import pytest

from vit_jax.errors import UserError
from vit_jax.prediction.inputs import Input
from vit_jax.prediction.passes import Passes
from vit_jax.prediction.stream import prepared


def made(numbers, now=False):
    return (Input(str(number), lambda number=number: number, now) for number in numbers)


def prepare(number, name):
    if number % 5 == 3:
        raise UserError(f"{name} is bad")
    if number % 5 == 4:
        raise ZeroDivisionError("a bug of a\ntransform")
    time.sleep(0.001 * (number % 3))  # they do not end in order
    return np.full((1, 1, 1), number, np.uint8)


def test_results_are_in_order_and_name_whatever_failed():
    found = list(prepared(made(range(20)), prepare, ahead=8))
    assert [each.name for each in found] == [str(number) for number in range(20)]
    for number, each in enumerate(found):
        if number % 5 < 3:
            assert each.error is None
            assert each.pixels.item() == number
        else:
            assert each.pixels is None
    assert str(found[3].error) == "3 is bad"
    assert str(found[4].error) == "4 cannot be prepared: a bug of a transform"


@pytest.mark.parametrize("now", [False, True])
def test_no_more_are_taken_than_may_wait(now):
    taken = []

    def endless():
        number = 0
        while True:
            taken.append(number)
            yield from made([number * 5], now)
            number += 1

    stream = prepared(endless(), lambda number, name: np.zeros((1, 1, 1)), ahead=6)
    for used in range(1, 40):
        next(stream)
        assert len(taken) <= used + 6
    stream.close()
    assert not [each for each in threading.enumerate() if "prepare" in each.name]


def test_now_means_before_the_next_is_taken():
    buffer = np.zeros((1, 1, 1), np.uint8)

    def reused():
        for number in range(5):
            buffer[:] = number
            yield Input(str(number), lambda: buffer, now=True)

    stream = prepared(reused(), lambda array, name: array.copy(), ahead=3)
    assert [each.pixels.item() for each in stream] == list(range(5))


class Rank:
    """A model whose class of an image is its pixel; it keeps the sizes of batches."""

    def __init__(self):
        self.rows = []

    def __call__(self, pixels):
        self.rows.append(len(pixels))
        return pixels[:, 0, 0].astype(int), np.ones((len(pixels), 1))


def test_a_batch_is_filled_with_readable_images():
    rank = Rank()
    numbers = [number for number in range(40) if number % 5 < 4]  # a quarter is bad
    passes = Passes(rank, "c{}".format, batch_size=4)
    found = list(passes(prepared(made(numbers), prepare, ahead=8)))
    assert [each.image for each in found] == [str(number) for number in numbers]
    for number, each in zip(numbers, found, strict=True):
        good = number % 5 < 3
        assert each.top == ([(f"c{number}", 1.0)] if good else [])
        assert (each.error is None) == good
    assert rank.rows == [4] * 6


@pytest.mark.parametrize(
    ("count", "rows"), [(0, []), (1, [1]), (3, [4]), (6, [6]), (5, [6]), (13, [6] * 3)]
)
def test_few_programs_for_many_counts(count, rows):
    rank = Rank()
    passes = Passes(rank, str, batch_size=6)
    found = list(passes(prepared(made([0] * count), prepare, ahead=12)))
    assert len(found) == count
    assert rank.rows == rows


def test_after_a_bad_image_nothing_is_computed_if_nothing_is_wanted():
    rank = Rank()
    passes = Passes(rank, str, batch_size=2, after_error=False)
    found = list(passes(prepared(made([0, 1, 3, 5, 6, 8]), prepare, ahead=4)))
    assert [each.image for each in found if each.error] == ["3", "8"]
    assert rank.rows == [2]


def test_images_are_taken_while_the_device_computes():
    events = []

    def taken():
        for number in range(6):
            events.append(f"take {number}")
            yield from made([number * 5], now=True)

    def rank(pixels):
        events.append("start")
        return pixels[:, 0, 0].astype(int), np.ones((len(pixels), 1))

    stream = Passes(rank, str, batch_size=2)(prepared(taken(), prepare, ahead=0))
    next(stream)
    # The second batch has been started before the results of the first are used.
    assert events.count("start") == 2
