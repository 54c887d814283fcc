"""What an app prints and logs is shown once, under the display, and written down."""

from __future__ import annotations

import io
import logging
import re
import sys
import threading
from collections.abc import Iterator
from logging import DEBUG, ERROR, INFO, WARNING
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.logger import log
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from rich.console import Console

from fl import simulate
from fl.clients import Sgd, TrainingApp
from fl.data import Examples, FederatedData
from fl.data.federated import Partitions
from fl.execution import speech
from fl.execution.speech import Ear, Lines, Tap, hearing, hearing_clients, listening
from fl.models import LogisticRegression
from fl.reports import Progress
from fl.simulation.world.fleets import uniform

N = 3
ROUNDS = 2


@pytest.fixture(autouse=True)
def flower_logs() -> Iterator[None]:
    """Flower's logger as it is, whatever other tests have done to it."""
    flower = logging.getLogger("flwr")
    before = flower.level
    flower.setLevel(DEBUG)
    yield
    flower.setLevel(before)


def client_app(speak: Any) -> ClientApp:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        speak(int(context.node_config["partition-id"]))
        content = {
            "arrays": message.content["arrays"],
            "metrics": MetricRecord({"num-examples": 1}),
        }
        return Message(RecordDict(content), reply_to=message)

    return app


def run(speak: Any = lambda client: None, main: Any = None, **kwargs: Any) -> None:
    app = ServerApp()

    @app.main()
    def run_server(grid: Grid, context: Context) -> None:
        if main is not None:
            main()
        start = ArrayRecord({"w": Array(np.zeros(3))})
        FedAvg(fraction_evaluate=0.0).start(grid, start, ROUNDS)

    settings = {"executor": "serial", "progress": False, "views": False}
    simulate(app, client_app(speak), uniform(N, 0), **{**settings, **kwargs})


def written(folder: Path) -> list[list[str]]:
    """Returns the lines of fl.log, as [who and] what, without the time."""
    path = folder / "fl.log"
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return [line.split(" | ")[1:] for line in text.splitlines()]


# ---- the ServerApp -------------------------------------------------------------------------------


def test_what_the_server_says_goes_where_it_always_went_and_is_written_down(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def main() -> None:
        print("begin")
        print("half", end=" ", flush=True)
        print("and half")
        print("wrong", file=sys.stderr)
        log(INFO, "by Flower's logger")
        sys.stdout.write("\x1b[32mgreen\x1b[0m\nno end of line")

    run(main=main, directory=tmp_path)
    out, err = capsys.readouterr()
    assert out == "begin\nhalf and half\n\x1b[32mgreen\x1b[0m\nno end of line"
    assert [line.rpartition("  ")[2].strip() for line in err.splitlines()] == [
        "wrong",
        "by Flower's logger",
    ]
    assert [line[0] for line in written(tmp_path) if len(line) == 1] == [
        *("begin", "half and half", "wrong", "INFO :      by Flower's logger", "green"),
        "no end of line",
    ]


def test_flowers_own_account_is_not_shown_and_its_warnings_are_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(directory=tmp_path)
    assert capsys.readouterr() == ("", "")
    told = [line for line in written(tmp_path) if line[0] == "flwr"]
    assert any("fraction_evaluate is set to 0.0" in line[1] for line in told)
    assert not any("ROUND" in line[-1] or "Starting" in line[-1] for line in written(tmp_path))


def test_a_flower_error_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    from flwr.supercore import logger

    def main() -> None:
        for level in (DEBUG, INFO, WARNING, ERROR):
            code = compile("logger.log(level, 'level %d', level)", logger.__file__, "exec")
            exec(code, {"logger": logger, "level": level})

    run(main=main)
    assert "level 40" in capsys.readouterr().err


def test_an_apps_own_logging_is_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logger = logging.getLogger("an app's")
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    logger.addHandler(handler)
    try:
        run(main=lambda: logger.warning("mine"), directory=tmp_path)
    finally:
        logger.removeHandler(handler)
    assert capsys.readouterr().out == "WARNING: mine\n"
    assert ["WARNING: mine"] in written(tmp_path)


# ---- clients -------------------------------------------------------------------------------------


def test_what_clients_say_bears_their_name_and_is_shown_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def speak(client: int) -> None:
        print("loading")
        print("I am", client)
        print("wrong", file=sys.stderr)
        log(INFO, "by Flower's logger")

    run(speak, directory=tmp_path)
    out, err = capsys.readouterr()
    shown = out.splitlines()
    assert sorted(line.split(" | ")[1] for line in shown) == [
        "I am 0",
        "I am 1",
        "I am 2",
        "loading",
    ]
    for client in range(N):
        assert f"client {client} | I am {client}" in shown
    assert sorted(line.split(" | ")[1] for line in err.splitlines()) == [
        "INFO :      by Flower's logger",
        "wrong",
    ]
    kept = [line for line in written(tmp_path) if line[0].startswith("client")]
    assert len(kept) == 4 * N * ROUNDS
    assert kept.count(["client 1", "loading"]) == ROUNDS
    assert kept.count(["client 1", "I am 1"]) == ROUNDS


def test_lines_bear_the_virtual_time(tmp_path: Path) -> None:
    run(lambda client: print("here"), directory=tmp_path)
    lines = (tmp_path / "fl.log").read_text().splitlines()
    times = [float(line.split(" s | ")[0]) for line in lines]
    assert times == sorted(times)
    assert times[-1] > 0.0


def test_no_directory_writes_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run(lambda client: print("here"), main=lambda: print("there"))
    assert list(tmp_path.iterdir()) == []


def test_lines_of_a_client_are_shown_while_it_works(capsys: pytest.CaptureFixture[str]) -> None:
    # Whoever debugs a client in this process sees where it is.
    seen = []

    def speak(client: int) -> None:
        print(f"I am {client}")
        with listening(None):
            seen.append(capsys.readouterr().out)

    run(speak)
    assert "client 1 | I am 1\n" in seen


def test_a_client_that_does_not_stop_talking_is_cut(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(lambda client: print("\n".join(f"{client} {i:050}" for i in range(10_000))))
    lines = capsys.readouterr().out.splitlines()
    assert sum(len(line) for line in lines) < ROUNDS * N * 150_000
    assert any(line.endswith(" more lines)") for line in lines)


def test_clients_that_train_together_are_heard_together(capsys: pytest.CaptureFixture[str]) -> None:
    class Talking(Sgd):
        def step(self, *args: Any, **kwargs: Any) -> Any:
            print("a step")
            return super().step(*args, **kwargs)

    rng = np.random.default_rng(0)
    examples = Examples(rng.standard_normal((40, 4)).astype(np.float32), rng.integers(0, 3, 40))
    partitions = Partitions.contiguous([8] * 5)
    data = FederatedData("toy", examples, examples, partitions, num_classes=3, input_shape=(4,))
    model = LogisticRegression((4,), 3)
    app = TrainingApp(model, data, Talking(0.1), batch_size=4, batching="on")

    def main(grid: Grid, context: Context, recorder: Any) -> None:
        FedAvg(fraction_evaluate=0.0).start(grid, ArrayRecord(model.state_dict()), 1)

    simulate(main, app, uniform(5, 0), executor="serial", progress=False)
    assert re.fullmatch(r"clients \d, \d, \d, \.\.\. \| a step\n", capsys.readouterr().out)


# ---- the display ---------------------------------------------------------------------------------


def test_the_display_is_not_taken_for_the_apps_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setattr(
        "fl.runs.simulator.Progress",
        lambda **kwargs: Progress(
            **kwargs, console=Console(file=None, stderr=True, force_terminal=True, width=80)
        ),
    )
    run(
        lambda client: print(f"I am {client}"),
        main=lambda: print("[bold]begin[/bold]"),
        directory=tmp_path,
        progress=True,
    )
    text = screen.getvalue()
    assert "in flight" in text
    # Each line begins where the display was taken away, and ends before it is drawn again.
    for line in ("[bold]begin[/bold]", "client 0 | I am 0", "client 2 | I am 2"):
        assert text.count(f"\x1b[2K{line}\n") == 1
        assert text.count(line) == 1
    assert not any("in flight" in part for line in written(tmp_path) for part in line)
    assert sys.stdout is screen


def test_everything_is_put_back_also_after_an_error() -> None:
    flower = logging.getLogger("flwr")
    before = (sys.stdout, sys.stderr, flower.propagate, list(flower.filters))
    streams = [handler.stream for handler in flower.handlers]

    def fail() -> None:
        assert isinstance(sys.stdout, Tap)
        raise LookupError

    with pytest.raises(LookupError):
        run(main=fail)
    assert (sys.stdout, sys.stderr, flower.propagate, list(flower.filters)) == before
    assert [handler.stream for handler in flower.handlers] == streams


# ---- lines ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pieces", "lines"),
    [
        (["a\nb\n"], ["a", "b"]),
        (["a", "b", "\nc"], ["ab", "c"]),
        (["1 %\r", "50 %\r100 %\n"], ["100 %"]),
        (["1 %\r\n"], ["1 %"]),
        (["\x1b[1mbold\x1b[0m \x07bell\n"], ["bold bell"]),
        (["\n \n\r\n"], []),
        (["\ttab  \n"], ["\ttab"]),
        (["\ud800\n"], ["\ud800"]),
    ],
)
def test_text_becomes_the_lines_that_a_person_reads(pieces, lines) -> None:
    reader = Lines()
    assert [line for piece in pieces for line in reader.of(piece)] + reader.rest() == lines


def test_a_line_without_end_does_not_fill_the_memory() -> None:
    reader = Lines()
    found = [line for _ in range(300) for line in reader.of("x" * 1000)]
    assert len(found) >= 2


def test_without_a_listener_a_tap_is_the_stream() -> None:
    stream = io.StringIO()
    tap = Tap(stream, error=False)
    assert tap.write("a") == 1
    tap.writelines(["b", "c"])
    print("d", file=tap)
    assert stream.getvalue() == "abcd\n"
    assert tap.getvalue() == "abcd\n"
    with pytest.raises(AttributeError):
        tap.no_such_thing  # noqa: B018


def test_other_threads_are_not_heard(capsys: pytest.CaptureFixture[str]) -> None:
    with hearing(), hearing_clients("client 0") as ear:
        thread = threading.Thread(target=lambda: print("from a thread"))
        thread.start()
        thread.join()
        print("from the client")
    assert [line.text for line in ear.lines] == ["from the client"]
    assert capsys.readouterr().out == "from a thread\n"


def test_an_ear_in_an_ear_tells_the_outer_one() -> None:
    outer = Ear("outer", None)
    with hearing(), listening(outer), hearing_clients("inner") as ear:
        print("said")
    assert ear.lines == []
    assert [(line.who, line.text) for line in outer.lines] == [("inner", "said")]
    assert speech.listener_here() is None
