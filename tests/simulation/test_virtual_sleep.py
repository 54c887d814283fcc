"""Whose sleep is virtual, and whose is not."""

from __future__ import annotations

import math
import sys
import threading
import time
import types

import pytest

from fl.simulation import virtual_sleep as module
from fl.simulation.virtual_sleep import answering, virtual_sleep


def test_sleeps_go_to_whoever_answers_and_cost_no_host_time() -> None:
    slept = []
    began = time.perf_counter()
    with virtual_sleep(), answering(slept.append):
        time.sleep(1000)
        time.sleep(0.5)
    assert slept == [1000.0, 0.5]
    assert time.perf_counter() - began < 100.0


def test_copies_made_by_an_import_are_replaced_under_any_name_and_put_back() -> None:
    app = types.ModuleType("somebodys_app")
    exec("from time import sleep, time\nfrom time import sleep as pause", app.__dict__)
    sys.modules[app.__name__] = app
    real = (time.sleep, time.time)
    slept = []
    try:
        with virtual_sleep(), answering(slept.append):
            app.sleep(1)
            app.pause(2)
            assert app.time is time.time is not real[1]
        assert (app.sleep, app.time, app.pause) == (*real, real[0])
    finally:
        del sys.modules[app.__name__]
    assert slept == [1.0, 2.0]
    assert (time.sleep, time.time) == real
    assert (module._real_sleep, module._real_time) == real


def test_an_app_imported_meanwhile_is_put_back_too() -> None:
    app = types.ModuleType("imported_late")
    with virtual_sleep():
        exec("from time import sleep", app.__dict__)
        sys.modules[app.__name__] = app
    del sys.modules[app.__name__]
    assert app.sleep is time.sleep is module._real_sleep


def test_nobody_answers_for_other_threads_or_outside_or_for_the_simulator(monkeypatch) -> None:
    virtual, real = [], []
    monkeypatch.setattr(module, "_answering", threading.local())
    with virtual_sleep():
        monkeypatch.setattr(module, "_real_sleep", real.append)
        time.sleep(1)
        with answering(virtual.append):
            thread = threading.Thread(target=time.sleep, args=(2,))
            thread.start()
            thread.join()
            with answering(None):
                time.sleep(3)
            time.sleep(4)
        time.sleep(5)
        monkeypatch.undo()
    assert (virtual, real) == ([4.0], [1, 2, 3, 5])


def test_who_answers_is_put_back_after_an_error() -> None:
    slept = []
    with virtual_sleep(), answering(slept.append):
        with pytest.raises(KeyError), answering(None):
            raise KeyError
        time.sleep(1)
    assert slept == [1.0]


def test_nested_uses_are_one() -> None:
    real = time.sleep
    with virtual_sleep():
        with virtual_sleep():
            pass
        assert time.sleep is not real
    assert time.sleep is real


@pytest.mark.parametrize("seconds", [-1, math.nan, math.inf])
def test_a_sleep_that_cannot_be_is_an_error_as_it_is_for_real(seconds) -> None:
    slept = []
    with pytest.raises((ValueError, OverflowError)):
        time.sleep(seconds)
    with virtual_sleep(), answering(slept.append), pytest.raises(ValueError, match="sleep length"):
        time.sleep(seconds)
    assert slept == []


def test_what_sleeps_until_a_time_of_day_wakes_up() -> None:
    slept = []
    with virtual_sleep(), answering(slept.append):
        end = time.time() + 500.0
        while time.time() < end:
            time.sleep(0.1)
    # Host time passes as well for a ClientApp, which works while it does not sleep.
    assert 400.0 < sum(slept) < 500.2


def test_a_given_time_is_shown_from_the_beginning_of_the_block() -> None:
    now = [0.0]

    def sleeper(seconds: float) -> None:
        now[0] += seconds

    before = time.time()
    with virtual_sleep(), answering(sleeper, lambda: now[0]):
        assert math.floor(before) <= time.time() <= before + 10.0
        start = time.time()
        assert time.time() == start
        time.sleep(3600.5)
        assert time.time() - start == 3600.5
    assert time.time() - before < 60.0
