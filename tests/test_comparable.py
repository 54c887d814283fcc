"""What strategies do at their defaults, so that a sweep over them compares like with like.

The first table of docs/methods.md is made of what the strategies really send, the second of whole
runs: `python tests/test_comparable.py` prints the first anew, and with `reached` the second.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from every_strategy import (
    CODED,
    LEARNING,
    LOCAL,
    MODELS,
    OUTER,
    PARTIAL,
    RANKS,
    SPARSE,
    STAGED,
    mostly_slow,
)
from flwr.app import ConfigRecord, RecordDict
from hydra import compose, initialize_config_module
from omegaconf import DictConfig, OmegaConf

import fl
from fl import simulate
from fl.execution.contract import Payload, Request, Result
from fl.execution.executor import Executor
from fl.runs.build import build
from fl.runs.experiment import app_of
from fl.runs.run import serve
from fl.selection import Reply, RoundEnd, TiFL
from fl.strategies import Polling, Rounds
from fl.strategies.drivers.events.server import Server

CONF = Path(fl.__file__).parent / "conf"
PAGE = CONF.parents[1] / "docs" / "methods.md"
STRATEGIES = LEARNING
HEADER = (
    "| strategy | client and its rate | local work of a task | clients at once | server |\n"
    "|---|---|---|---|---|\n"
)

REACHED = (
    "| strategy | fleet | rounds | accuracy | simulated time | client updates |\n"
    "|---|---|---|---|---|---|\n"
)

# Names of what a server's step is multiplied with, as the members of the group have them.
RATES = ("eta", "alpha", "gamma", "lr", "beta", "momentum", "scale")

# 100 clients have 14 or 15 examples each: four steps of 4 are an epoch.
SETTING = [
    "executor=serial",
    "fleet=uniform",
    "partition=iid",
    "model=logistic",
    "progress=false",
    "target=null",
    "num_rounds=2",
]


OWN = " (own)"  # accuracy of what clients would use, on their own examples


class Asked(Exception):
    """The strategy has sent what it sends first, and would now get answers."""


class NobodyAnswers(Executor):
    """Ends the run when the first answer is awaited."""

    def start(self, app: Any, run: Any) -> None:
        pass

    def submit(self, wave: Any) -> None:
        pass

    def result(self, request: Request) -> Result:
        raise Asked

    def discard(self, request: Request) -> None:
        pass

    def close(self) -> None:
        pass


def composed(*overrides: str) -> DictConfig:
    with initialize_config_module("fl.conf", version_base=None):
        return compose("config", [*SETTING, *overrides], return_hydra_config=True)


def config_of(name: str) -> DictConfig:
    # A linear model has no layers to spare.
    model = (
        MODELS.get(name, ["model=mlp"]) if name in (*PARTIAL, *LOCAL, "dimat", "fedconv") else []
    )
    if name in STAGED:
        model = ["model=mlp"]
    if name in CODED:
        model = ["partition=coded"]
    unasked = "personal.every=null"  # before the first task
    config = composed(f"strategy={name}", *model, unasked)
    for part in config.tasks.values() if config.get("tasks") else [config]:
        part.client.batch_size, part.client.batching = 4, "off"
    return config


def begin_timed(strategy: Rounds, begin: Callable[[Server], None], server: Server) -> None:
    """Begins when all clients have been timed."""
    begin(server)
    timed = RoundEnd(1, [Reply(node, 1.0, 1.0, {}) for node in server.tasks.nodes()], trial=True)
    strategy.chooses.known = strategy.selection.learn(strategy.chooses.known, timed)


def first_tasks(config: DictConfig) -> tuple[Any, Any, list[tuple[Any, int]]]:
    """Returns strategy, app, and content and partition of the tasks that are sent first."""
    experiment = build(config)
    strategy, app = experiment.strategy, app_of(experiment)
    if isinstance(strategy, Rounds) and isinstance(strategy.selection, TiFL):
        strategy.begin = partial(begin_timed, strategy, strategy.begin)  # type: ignore[method-assign]
    sent: list[tuple[Any, int]] = []
    plan = app.plan

    def noting(payload: Any, message_type: str, partition: int, seconds_per_flop: float) -> Any:
        if message_type == "train":
            sent.append((payload.content, partition))
        return plan(payload, message_type, partition, seconds_per_flop)

    app.plan = noting  # type: ignore[method-assign]
    # In rounds without messages, clients with the same amount of data are asked for once.
    alone = patch("fl.strategies.drivers.rounds.rounds.has_foreseen", return_value=False)
    with alone, pytest.raises(Asked):
        simulate(
            lambda grid, _, recorder: serve(experiment, config, grid, recorder),
            app,
            experiment.fleet,
            executor=NobodyAnswers(),
            progress=False,
        )
    app.plan = plan  # type: ignore[method-assign]
    return strategy, app, sent


def local_work(app: Any, content: Any, partition: int) -> str:
    """Returns how much a message asks for, by comparison with messages that say how much."""

    def flops(**limits: int) -> float:
        config = dict(content.get("config", {}))
        if limits:
            config.pop("local-steps", None)
            config.pop("local-epochs", None)
        config.pop("elapsed-s", None)
        config.update({name.replace("_", "-"): limit for name, limit in limits.items()})
        asked = Payload(RecordDict({**content, "config": ConfigRecord(config)}))
        return float(app.plan(asked, "train", partition, 1e-12).flops)

    asked = flops()
    if asked == flops(local_epochs=1):
        return "1 epoch"
    steps = next((k for k in range(1, 200) if flops(local_steps=k) == asked), None)
    return "1 step" if steps == 1 else f"{steps} steps"


def row(name: str) -> str:
    """Returns the table's row of a strategy."""
    config = config_of(name)
    strategy, app, sent = first_tasks(config)
    (work,) = {
        f"{content['config']['local-steps']} chunks, 1 step each"
        if name in CODED
        else local_work(app, content, partition)
        for content, partition in sent
    }
    if name in STAGED:  # what comes first asks for nothing
        m = config.strategy.micro_batches
        work = f"its stage, {m} micro-batch{'es' * (m > 1)}"
    if strategy.name == "FedCompass":  # the first task of all clients is the longest
        assert work == f"{strategy.rule.max_steps} steps"
        work = f"{strategy.rule.min_steps} to {work}"
    if strategy.name == "ProxSkip":  # until a coin falls
        work = f"{1 / strategy.rule.p:g} steps on average"
    if strategy.name == "SAVIC":  # the first round only measures
        assert work == "1 step"
        work = "1 epoch"
    client = f"`{config.hydra.runtime.choices.client}`"
    if correction := config.hydra.runtime.choices["client/correction"]:
        client += f" with `{correction}`"
    rule = (next(iter(config.tasks.values())) if config.get("tasks") else config).client.rule
    if "rho" in rule:
        work += ", 2 gradients a step"
    at_once = "all" if len(sent) == 100 else str(len(sent))
    if isinstance(strategy, Polling):
        at_once = f"all, {at_once} polled"
    settings: Any = OmegaConf.to_container(config.strategy, resolve=True)
    for key in ("rule", "optimizer", "server_optimizer", "above"):
        if isinstance(settings.get(key), dict):
            settings.update(settings[key])
    rates = ", ".join(
        f"{key} {'1 / C' if settings[key] is None else f'{settings[key]:g}'}"
        for key in RATES
        if key in settings
        and not isinstance(settings[key], str)
        # of compressed gossip: there is none without a compressor
        and not (key == "gamma" and settings[key] is None)
    )
    rate = f"{client}, {rule.lr:g}" if "lr" in rule else client
    return f"| `{name}` | {rate} | {work} | {at_once} | {rates} |"


def on_page(header: str = HEADER) -> list[str]:
    """Returns a table's rows as they are on the page."""
    page = PAGE.read_text("utf-8")
    return page[page.index(header) + len(header) :].partition("\n\n")[0].splitlines()


def reached(name: str) -> str:
    """Returns the second table's row of a strategy, after a run at its defaults."""
    with initialize_config_module("fl.conf", version_base=None):
        own = MODELS[name] if name == "fedbn" else ()  # the perceptron has no such layer
        config = compose("config", [f"strategy={name}", *own], return_hydra_config=True)
    fleet = config.hydra.runtime.choices.fleet
    experiment = build(config)
    learnt = experiment.tasks.values() or [experiment]
    run = simulate(
        lambda grid, _, recorder: serve(experiment, config, grid, recorder),
        app_of(experiment),
        experiment.fleet,
        num_partitions=max(part.data.num_partitions for part in learnt),
        executor="serial",
        progress=False,
    )
    totals, accuracy = run.summary["totals"], run.summary["final"][config.target.metric]
    assert run.summary["status"] == "completed"
    of = OWN if config.target.metric == "personal_accuracy" else ""
    return (
        f"| `{name}` | `{fleet}` | {config.num_rounds:,} | {accuracy:.2f}{of} | "
        f"{totals['virtual_s']:,.0f} s | {totals['client_updates']:,} |"
    )


@pytest.mark.parametrize("name", mostly_slow(STRATEGIES))
def test_the_methods_page_says_what_a_strategy_does_at_its_defaults(name):
    assert row(name) in on_page()


def test_no_strategy_does_more_local_work_than_others_but_where_that_is_the_method():
    rows = {line.split("`")[1]: line for line in on_page()}
    works = {name: line.split(" | ")[2].split(",")[0] for name, line in rows.items()}
    inner = {*OUTER, "async_diloco", "halos"}
    unlike = {name for name, work in works.items() if work not in ("1 epoch", "1 step")}
    assert unlike == {
        *(*inner, "fedcompass", "per_fedavg", "pfedme", "proxskip"),
        *(*CODED, *STAGED),
    }
    assert works["per_fedavg"] == "12 steps"  # 4 of the paper's, of 3 batches each
    assert works["pfedme"] == "20 steps"  # R of its paper
    assert works["fedcompass"] == "1 to 5 steps"  # 4 are an epoch
    assert works["proxskip"] == "5 steps on average"  # until its coin falls


@pytest.mark.slow
@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_learns_at_its_defaults_and_the_methods_page_says_how_much(name):
    (said,) = [line for line in on_page(REACHED) if line.startswith(f"| `{name}` ")]
    expected, cells = (line.split(" | ") for line in (said, reached(name)))
    # Other machines round otherwise, and take other steps by and by.
    got, wanted = (float(cell.removesuffix(OWN)) for cell in (cells[3], expected[3]))
    assert got == pytest.approx(wanted, abs=0.03)
    assert cells[:3] == expected[:3]
    # Of ten digits, or of the mean of two tasks; of the phones few have come, and trained; of a
    # small perceptron a tenth is little, and adapters of one whose weights are as they were drawn.
    assert got > (0.2 if cells[3].endswith(OWN) or name in (*SPARSE, *RANKS) else 0.7)


if __name__ == "__main__":
    header, of = (REACHED, reached) if sys.argv[1:] == ["reached"] else (HEADER, row)
    print(header + "\n".join(of(name) for name in STRATEGIES))
