import io
import logging
import re
import sys
import timeit

import pytest
from rich.console import Console

from fl.reports.progress import Progress, Status, _Terminal


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def plain_console():
    return Console(file=io.StringIO(), width=200)


def terminal_console():
    return Console(file=io.StringIO(), force_terminal=True, width=100, _environ={"TERM": "xterm"})


def text_of(console):
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", console.file.getvalue())


def test_each_evaluation_prints_one_line(clock):
    console = plain_console()
    status = Status()
    with Progress(total_rounds=2, console=console, host_clock=clock) as progress:
        for r in (1, 2):
            for _ in range(100):
                clock.now += 0.01
                status.time_s += 36.0
                status.client_updates += 1
                progress.update(status)
            status.round = r
            status.metrics = {"accuracy": 0.3 * r}
            status.in_flight, status.faults = 4, r
            progress.update(status)
    assert console.file.getvalue().splitlines() == [
        "round 1/2 | 1 h simulated | accuracy 0.3 | 4 in flight | 1 fault | 100 client updates | "
        "100/s on this host",
        "round 2/2 | 2 h simulated | accuracy 0.6 | 4 in flight | 2 faults | 200 client updates | "
        "100/s on this host",
    ]


def test_a_long_round_prints_a_line_every_half_minute(clock):
    console = plain_console()
    status = Status(metrics={"accuracy": 0.5})
    with Progress(total_time=7200.0, console=console, host_clock=clock) as progress:
        progress.update(status)
        for _ in range(95):
            clock.now += 1.0
            status.time_s += 60.0
            status.client_updates += 1
            progress.update(status)
    lines = console.file.getvalue().splitlines()
    simulated = [line.split(" | ")[1] for line in lines]
    assert simulated == [
        "0 s of 2 h simulated",
        "30 min of 2 h simulated",
        "1 h of 2 h simulated",
        "1 h 30 min of 2 h simulated",
        "1 h 35 min of 2 h simulated",  # where it was when it ended
    ]


def test_the_rate_is_that_of_the_last_ten_seconds(clock):
    console = plain_console()
    status = Status()
    with Progress(console=console, host_clock=clock) as progress:
        for second in range(1, 41):
            clock.now += 1.0
            status.client_updates += 100 if second <= 20 else 7
            status.metrics = {"accuracy": second / 100}
            progress.update(status)
    lines = console.file.getvalue().splitlines()
    assert "100/s on this host" in lines[19]
    assert "7.0/s on this host" in lines[39]


def test_nothing_is_printed_when_disabled(clock):
    console = plain_console()
    with Progress(enabled=False, console=console, host_clock=clock) as progress:
        progress.update(Status(metrics={"accuracy": 0.5}))
    assert console.file.getvalue() == ""


def test_nothing_is_printed_outside_the_block(clock):
    console = plain_console()
    progress = Progress(console=console, host_clock=clock)
    progress.update(Status(metrics={"accuracy": 0.1}))
    with progress:
        pass
    before = console.file.getvalue()
    progress.update(Status(metrics={"accuracy": 0.2}))
    assert console.file.getvalue() == before


def test_by_default_the_output_is_standard_error(capsys):
    with Progress() as progress:
        progress.update(Status(round=1, metrics={"accuracy": 0.5}))
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("round 1 | 0 s simulated | accuracy 0.5")


class Broken(io.StringIO):
    def write(self, text):
        raise BrokenPipeError("nobody reads")


def test_a_broken_or_closed_output_never_stops_the_run(clock):
    closed = io.StringIO()
    closed.close()
    for file in (Broken(), closed):
        console = Console(file=file, width=200)
        with Progress(console=console, host_clock=clock) as progress:
            for accuracy in (0.1, 0.2):
                progress.update(Status(metrics={"accuracy": accuracy}))
        assert not progress.enabled


def test_a_terminal_that_goes_away_never_stops_the_run():
    gone = _Terminal(file=Broken(), force_terminal=True, _environ={"TERM": "xterm"})
    streams = (sys.stdout, sys.stderr)
    with Progress(console=gone) as progress:
        progress.update(Status(metrics={"accuracy": 0.1}))
    assert not progress.enabled

    leaving = _Terminal(file=io.StringIO(), force_terminal=True, _environ={"TERM": "xterm"})
    with Progress(console=leaving) as progress:
        leaving.file = Broken()
        progress.update(Status(metrics={"accuracy": 0.1}))
    assert not progress.enabled
    assert (sys.stdout, sys.stderr) == streams


def test_an_output_that_cannot_encode_never_stops_the_run(clock):
    file = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    with Progress(console=Console(file=file, width=200), host_clock=clock) as progress:
        progress.update(Status(metrics={"précision": 0.1}))


def test_the_terminal_shows_a_bar_and_the_state(clock):
    console = terminal_console()
    with Progress(total_rounds=4, console=console, host_clock=clock) as progress:
        clock.now += 60.0
        metrics = {"accuracy": 0.5}
        progress.update(Status(3, 3600.0, metrics, in_flight=2, faults=1, client_updates=600))
    shown = text_of(console)
    assert " 75 %" in shown
    assert "1 min elapsed, 20.0 s left" in shown  # 3 of 4 rounds took 60 s
    assert "round 3/4  1 h simulated  accuracy 0.5" in shown
    assert "2 in flight | 1 fault | 600 client updates" in shown


def test_the_nearer_of_two_limits_decides_how_much_is_done():
    progress = Progress(total_rounds=10, total_time=100.0)
    progress.update(Status(round=2, time_s=50.0))
    assert progress._fraction() == 0.5
    progress.update(Status(round=20, time_s=50.0))
    assert progress._fraction() == 1.0


def run_and_raise(console, error):
    with Progress(console=console) as progress:
        progress.update(Status(round=1))
        raise error


@pytest.mark.parametrize("error", [RuntimeError("boom"), KeyboardInterrupt()])
def test_the_terminal_is_restored_after_an_exception(error):
    console = terminal_console()
    streams = (sys.stdout, sys.stderr)
    with pytest.raises(type(error)):
        run_and_raise(console, error)
    output = console.file.getvalue()
    hide, show = "\x1b[?25l", "\x1b[?25h"
    assert output.count(hide) == output.count(show) == 1
    assert output.index(hide) < output.rindex(show)
    assert (sys.stdout, sys.stderr) == streams


def test_log_lines_go_above_the_display_and_handlers_get_their_stream_back(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    stderr = Terminal()
    monkeypatch.setattr(sys, "stderr", stderr)
    handler = logging.StreamHandler(stderr)
    logger = logging.getLogger("fl.test_progress")
    logger.propagate = False
    logger.addHandler(handler)
    console = terminal_console()
    try:
        with Progress(console=console):
            assert handler.stream is not stderr
            logger.warning("client 7 is slow")
    finally:
        logger.removeHandler(handler)
    assert handler.stream is stderr
    assert stderr.getvalue() == ""
    assert "client 7 is slow" in text_of(console)


@pytest.mark.parametrize("make_console", [plain_console, terminal_console])
def test_an_update_that_shows_nothing_takes_less_than_a_microsecond(make_console):
    status = Status(metrics={"accuracy": 0.5})
    with Progress(console=make_console()) as progress:
        progress.update(status)
        seconds = min(timeit.repeat(lambda: progress.update(status), number=10_000, repeat=9))
    assert seconds / 10_000 < 1e-6


def test_a_notebook_without_widgets_gets_plain_lines(clock, monkeypatch):
    monkeypatch.setattr("fl.reports.progress.find_spec", lambda name: None)
    console = Console(file=io.StringIO(), width=200)
    console.is_jupyter = True
    progress = Progress(console=console, host_clock=clock)
    assert not progress._can_animate()
    monkeypatch.setattr("fl.reports.progress.find_spec", lambda name: object())
    assert progress._can_animate()
