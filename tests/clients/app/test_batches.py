import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from many_cases import for_each

from fl.clients.app.batches import (
    batch_bounds,
    covered_examples,
    steps_per_epoch,
    visiting_order,
)
from fl.randomness import generator

sizes = st.integers(1, 40)
widths = st.one_of(st.none(), st.integers(1, 12))


def batches(n: int, width: int | None, epochs: int, drop_last: bool) -> list[list[int]]:
    """The plain way: every epoch a permutation, cut into pieces."""
    stream = generator(5, "batches", 2, "2.9")
    pieces = []
    for _ in range(epochs):
        order = stream.permutation(n).tolist()
        epoch = [order[i : i + (width or n)] for i in range(0, n, width or n)]
        if drop_last and len(epoch) > 1:
            epoch = [piece for piece in epoch if len(piece) == width]
        pieces += epoch
    return pieces


@given(sizes, widths, st.integers(1, 4), st.booleans())
def test_bounds_cut_the_visiting_order_into_the_batches_of_every_epoch(n, width, epochs, drop_last):
    expected = batches(n, width, epochs, drop_last)
    order = visiting_order(n, epochs, 5, 2, "2.9", shuffle=True)
    assert steps_per_epoch(n, width, drop_last) * epochs == len(expected)
    for t, batch in enumerate(expected):
        (start,), (length,) = batch_bounds(t, np.array([n]), width, drop_last)
        assert order[start : start + length].tolist() == batch
        assert covered_examples(t + 1, n, width, drop_last) == sum(map(len, expected[: t + 1]))


@pytest.mark.parametrize("drop_last", [False, True])
def test_bounds_of_many_clients_are_those_of_each(drop_last):
    n = np.array([1, 5, 10, 11, 40])
    for t in range(9):
        starts, lengths = batch_bounds(t, n, 10, drop_last)
        for i, size in enumerate(n):
            (start,), (length,) = batch_bounds(t, np.array([size]), 10, drop_last)
            assert (starts[i], lengths[i]) == (start, length)


def test_orders_differ_between_epochs_clients_messages_and_seeds():
    def order(seed=0, client=1, message="1.0"):
        return visiting_order(50, 2, seed, client, message, shuffle=True).tolist()

    base = order()
    assert base[:50] != base[50:]
    assert sorted(base[:50]) == sorted(base[50:]) == list(range(50))
    for other in (order(seed=1), order(client=2), order(message="1.1")):
        assert other != base
    assert order() == base


def test_without_shuffling_every_epoch_is_in_the_order_of_the_data():
    assert visiting_order(3, 2, 0, 0, "0.0", shuffle=False).tolist() == [0, 1, 2, 0, 1, 2]


@pytest.mark.parametrize("width", [None, 4])
@for_each("drop_last", [False, True])
def test_no_examples_make_no_steps(width, drop_last):
    assert steps_per_epoch(0, width, drop_last) == 0
    assert covered_examples(7, 0, width, drop_last) == 0
