"""Garbage of a run goes before the process has grown much: a sweep's runs share one process."""

from __future__ import annotations

import gc
import weakref

import pytest

from fl.execution import garbage
from fl.execution.garbage import quick_garbage_collection, seldom_garbage_collection


class Part:
    """Refers to itself, as a run's parts do to each other."""

    def __init__(self) -> None:
        self.itself = self


@pytest.fixture(autouse=True)
def _seldom(monkeypatch):
    """No collection but those that are asked for, and no process that has run anything."""
    monkeypatch.setattr(garbage._Runs, "peak", 0)
    monkeypatch.setattr(garbage._Runs, "since", 0)
    with seldom_garbage_collection():
        yield


def left_behind() -> weakref.ref[Part]:
    return weakref.ref(Part())


def test_a_run_in_a_process_that_has_grown_begins_by_collecting_the_last_ones_garbage(monkeypatch):
    peak = 100
    monkeypatch.setattr(garbage, "peak_bytes", lambda: peak)
    with quick_garbage_collection():
        first = left_behind()
    peak = 120  # not enough to look at everything
    with quick_garbage_collection():
        assert first() is not None
    peak = 126
    with quick_garbage_collection():
        assert first() is None
        second = left_behind()
    with quick_garbage_collection():  # the peak is what it was
        assert second() is not None
    peak = 158
    with quick_garbage_collection():
        assert second() is None


def test_garbage_of_runs_goes_after_some_of_them_though_the_peak_is_what_it_was(monkeypatch):
    monkeypatch.setattr(garbage, "peak_bytes", lambda: 100)
    left, alive = [], []
    for _ in range(100):
        with quick_garbage_collection():
            left.append(left_behind())
            alive.append(sum(one() is not None for one in left))
    assert max(alive) == garbage._MOST_RUNS


def test_the_first_run_of_a_process_looks_at_nothing(monkeypatch):
    monkeypatch.setattr(garbage, "peak_bytes", lambda: 10**9)
    of_before = left_behind()
    with quick_garbage_collection():
        assert of_before() is not None
        assert gc.get_freeze_count()
    assert not gc.get_freeze_count()
    gc.collect()
    assert of_before() is None


def test_thresholds_are_what_they_were_when_a_block_has_ended():
    before = gc.get_threshold()
    with seldom_garbage_collection(), quick_garbage_collection():
        assert gc.get_threshold() != before
    assert gc.get_threshold() == before


def test_the_peak_is_bytes_of_this_process():
    assert 20e6 < garbage.peak_bytes() < 1e12
