"""Whose time is virtual, and whose is not."""

from __future__ import annotations

import datetime
import math
import pickle
import queue
import sys
import threading
import time
import timeit
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fl.execution import virtual_time as module
from fl.execution.virtual_time import EPOCH, TaskClock, answering, host_date, virtual_time

BEGIN = datetime.datetime(2025, 1, 1, tzinfo=datetime.UTC)


def module_of(name: str, source: str, path: str = "app.py") -> Any:
    made = types.ModuleType(name)
    exec(compile(source, path, "exec"), made.__dict__)
    return made


# ---- sleeping ------------------------------------------------------------------------------------


def test_sleeps_go_to_whoever_answers_and_cost_no_host_time() -> None:
    clock = TaskClock()
    with virtual_time(), answering(clock):
        time.sleep(1e6)
        time.sleep(0.5)
    assert clock.slept_s == 1e6 + 0.5


def test_copies_made_by_an_import_are_replaced_under_any_name_and_put_back() -> None:
    app = module_of("app", "from time import sleep, time\nfrom time import sleep as pause")
    sys.modules[app.__name__] = app
    real = (time.sleep, time.time)
    clock = TaskClock()
    try:
        with virtual_time(), answering(clock):
            app.sleep(1)
            app.pause(2)
            assert app.time is time.time is not real[1]
        assert (app.sleep, app.time, app.pause) == (*real, real[0])
    finally:
        del sys.modules[app.__name__]
    assert clock.slept_s == 3.0
    assert (time.sleep, time.time) == real


def test_an_app_imported_meanwhile_is_put_back_too() -> None:
    with virtual_time():
        app = sys.modules["late"] = module_of("late", "from time import sleep")
    del sys.modules["late"]
    assert app.sleep is time.sleep
    assert time.sleep.__module__ == "time"


def test_nobody_answers_for_other_threads_or_outside_or_for_the_simulator(monkeypatch) -> None:
    clock, real = TaskClock(), []
    with virtual_time():
        monkeypatch.setattr(module, "_real_sleep", real.append)
        time.sleep(1)
        with answering(clock):
            thread = threading.Thread(target=lambda: time.sleep(2))
            thread.start()
            thread.join()
            with answering(None):
                time.sleep(3)
            time.sleep(4)
        time.sleep(5)
        monkeypatch.undo()
    assert (clock.slept_s, real) == (4.0, [1, 2, 3, 5])


def test_who_answers_is_put_back_after_an_error() -> None:
    clock = TaskClock()
    with virtual_time(), answering(clock):
        with pytest.raises(KeyError), answering(None):
            raise KeyError
        time.sleep(1)
    assert clock.slept_s == 1.0


def test_nested_uses_are_one() -> None:
    real = time.sleep
    with virtual_time():
        with virtual_time():
            pass
        assert time.sleep is not real
    assert time.sleep is real


@pytest.mark.parametrize("seconds", [-1, math.nan, math.inf])
def test_a_sleep_that_cannot_be_is_an_error_as_it_is_for_real(seconds) -> None:
    clock = TaskClock()
    with pytest.raises((ValueError, OverflowError)):
        time.sleep(seconds)
    with virtual_time(), answering(clock), pytest.raises(ValueError, match="sleep length"):
        time.sleep(seconds)
    assert clock.slept_s == 0.0


# ---- clocks --------------------------------------------------------------------------------------

DATES: dict[str, Callable[[], float]] = {
    "time.time": lambda: time.time(),
    "time.time_ns": lambda: time.time_ns() / 1e9,
    "time.localtime": lambda: time.mktime(time.localtime()),
    "time.gmtime": lambda: datetime.datetime(*time.gmtime()[:6], tzinfo=datetime.UTC).timestamp(),
    "time.ctime": lambda: time.mktime(time.strptime(time.ctime())),
    "time.asctime": lambda: time.mktime(time.strptime(time.asctime())),
    "time.strftime": lambda: time.mktime(time.strptime(time.strftime("%c"), "%c")),
    "datetime.now": lambda: datetime.datetime.now().timestamp(),
    "datetime.now(tz)": lambda: datetime.datetime.now(datetime.UTC).timestamp(),
    "datetime.utcnow": lambda: datetime.datetime.utcnow().replace(tzinfo=datetime.UTC).timestamp(),
    "datetime.today": lambda: datetime.datetime.today().timestamp(),
    "a subclass": lambda: type("Own", (datetime.datetime,), {}).now().timestamp(),
}
SECONDS: dict[str, Callable[[], float]] = {
    "time.perf_counter": lambda: time.perf_counter(),
    "time.perf_counter_ns": lambda: time.perf_counter_ns() / 1e9,
    "time.monotonic": lambda: time.monotonic(),
    "time.monotonic_ns": lambda: time.monotonic_ns() / 1e9,
    "time.process_time": lambda: time.process_time(),
    "time.process_time_ns": lambda: time.process_time_ns() / 1e9,
    "time.thread_time": lambda: time.thread_time(),
    "time.thread_time_ns": lambda: time.thread_time_ns() / 1e9,
    "timeit.default_timer": lambda: timeit.default_timer(),
}


@pytest.mark.parametrize("look", DATES.values(), ids=DATES)
def test_every_date_is_that_of_virtual_time(look) -> None:
    with virtual_time(), answering(TaskClock(), EPOCH + 1000):
        time.sleep(234.0)
        assert int(look()) == EPOCH + 1234
    assert abs(look() - time.time()) < 100.0


def test_the_day_is_that_of_virtual_time() -> None:
    with virtual_time(), answering(TaskClock(), 86400 * 365.0):
        assert datetime.date.today() == datetime.date(1971, 1, 1)
    assert datetime.date.today().year > 2024


@pytest.mark.parametrize("look", [*DATES.values(), *SECONDS.values()], ids=[*DATES, *SECONDS])
def test_a_day_of_sleep_is_a_day_on_every_clock(look) -> None:
    with virtual_time(), answering(TaskClock()):
        before = look()
        time.sleep(86400.0)
        assert look() - before == pytest.approx(86400.0, abs=0.01)


@pytest.mark.parametrize("look", SECONDS.values(), ids=SECONDS)
def test_what_a_clock_shows_does_not_depend_on_the_host(look) -> None:
    def shown() -> list[float]:
        with virtual_time(), answering(TaskClock()):
            return [look(), look(), look()]

    first = shown()
    assert first == shown()
    # And an app may divide by what has passed between two looks.
    assert first[0] < first[1] < first[2] < 1.0


def test_a_time_that_is_given_is_not_that_of_now() -> None:
    with virtual_time(), answering(TaskClock()):
        assert time.gmtime(0.0).tm_year == 1970
        assert time.strftime("%Y", (1999, *[1] * 8)) == "1999"
        assert time.asctime((1999, *[1] * 8)).endswith("1999")
        assert time.ctime(1e9) == time.asctime(time.localtime(1e9))
        assert datetime.datetime.fromtimestamp(0, datetime.UTC).year == 1970


def test_types_stay_themselves() -> None:
    kind = datetime.datetime
    with virtual_time(), answering(TaskClock()):
        now = datetime.datetime.now(datetime.UTC)
        assert type(now) is datetime.datetime is kind
        assert pickle.loads(pickle.dumps(now)) == now
    assert isinstance(datetime.datetime.__dict__["now"], types.ClassMethodDescriptorType)
    assert isinstance(datetime.date.__dict__["today"], types.ClassMethodDescriptorType)


def test_whole_seconds_make_differences_independent_of_the_beginning(monkeypatch) -> None:
    def differences(began: float) -> list[float]:
        with monkeypatch.context() as patch:
            patch.setattr(module, "_real_time", lambda: began)
            epoch = host_date()
        assert epoch == int(began)
        out = []
        with virtual_time(), answering(TaskClock(), epoch):
            start = time.time()
            for seconds in (0.1, 1 / 3, 1e-5, 7.7):
                time.sleep(seconds)
                out.append(time.time() - start)
        return out

    assert differences(1_700_000_000.123) == differences(1_912_345_678.9)


def test_who_waits_by_looking_at_a_clock_waits() -> None:
    clock = TaskClock()
    with virtual_time(), answering(clock):
        end = time.monotonic() + 30.0
        while time.monotonic() < end:
            pass
    # The first looks are measurements; from some number on they are sleeps.
    assert clock.slept_s == pytest.approx(30.0, abs=0.1)


def test_measured_time_goes_on_with_the_hosts() -> None:
    with virtual_time(), answering(TaskClock(host=True)):
        before = time.perf_counter()
        time.sleep(50.0)
        sum(range(1000))
        assert time.perf_counter() - before > 50.0 + 3e-6  # more than the looks


# ---- who asks ------------------------------------------------------------------------------------


def test_the_standard_library_waits_in_the_hosts_time() -> None:
    with virtual_time(), answering(TaskClock()):
        waiting = queue.Queue()
        with pytest.raises(queue.Empty):  # by `time.monotonic`: in virtual time it never ended
            waiting.get(timeout=0.01)


@pytest.mark.parametrize(
    ("package", "source", "virtual"),
    [
        ("waiter", "import time", False),
        ("lab", "import time\nfrom flwr.serverapp import ServerApp\napp = ServerApp()", True),
        ("lab", "import time\nimport flwr", True),
        ("lab", "import time\nfrom flwr.serverapp import Grid as anything", True),
    ],
)
def test_an_installed_package_is_an_app_if_it_uses_flower(
    package: str, source: str, virtual: bool, tmp_path: Path
) -> None:
    # Another path each time: who asks is known by the file.
    path = str(tmp_path / "site-packages" / package / "task.py")
    user = sys.modules[f"{package}.app"] = module_of(f"{package}.app", source)
    task = module_of(f"{package}.task", "import time\ndef look(): return time.time()", path)
    try:
        with virtual_time(), answering(TaskClock(), 0.0):
            assert (task.look() < 1e6) == virtual
    finally:
        del sys.modules[user.__name__]


def test_who_asks_for_the_date_is_told_apart_from_who_measures() -> None:
    told = []
    with virtual_time(), answering(TaskClock(), EPOCH, lambda: told.append(1)):
        time.time()
        time.monotonic()
        time.localtime(0.0)
        assert told == []
        for count, look in enumerate(
            [
                datetime.datetime.now,
                datetime.date.today,
                time.localtime,
                lambda: time.strftime("%Y"),
            ],
            start=1,
        ):
            look()
            assert len(told) == count
        from flwr.supercore.date import now

        assert now() >= BEGIN  # Flower's own: for its messages, not for anybody to see
        assert len(told) == 4
