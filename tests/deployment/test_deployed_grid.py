"""The app of a deployment on a grid like Flower's, in this process."""

from __future__ import annotations

import hashlib
import io
import itertools
import random
import shlex
import zipfile
from pathlib import Path

import pytest
from flwr.app import Context, Error, Message, RecordDict
from flwr.cli.build import build_fab_from_disk
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf
from replay import FAMILIES, assert_same_model, overrides_of

from fl import ConfigError
from fl.deployment import DeployedGrid
from fl.deployment import server as deployed_server
from fl.deployment.client import app
from fl.deployment.nodes import WHO
from fl.deployment.settings import compose_experiment, read_settings
from fl.flower.identity import assume_identity, node_id
from fl.flower.private import Run, give_id
from fl.randomness import generator

ROOT = Path(__file__).parents[2]


class LoopbackGrid(Grid):
    """SuperLink and SuperNodes as a strategy meets them, without processes.

    Node ids and message ids are arbitrary, and replies come in any order, some polls later.
    """

    def __init__(self, node_configs, run_config, seed=0):
        self.rng = generator(seed, "loopback")
        self.ids = [int(i) for i in self.rng.choice(2**60, len(node_configs), replace=False)]
        self.contexts = {
            i: Context(1, i, dict(config), RecordDict(), dict(run_config))
            for i, config in zip(self.ids, node_configs, strict=True)
        }
        self.online = list(self.ids)
        self.waiting = {}
        self.seen = []  # ids of the nodes that were sent a message, and its type
        self.refuses = False
        self._numbers = itertools.count()
        assume_identity()

    def set_run(self, run):
        self._run = run

    @property
    def run(self):
        return Run.create_empty(1)

    def create_message(self, content, message_type, dst_node_id, group_id, ttl=None):
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self):
        return [int(i) for i in self.rng.permutation(self.online)]

    def push_messages(self, messages):
        messages = list(messages)
        if self.refuses:
            return [None] * len(messages)
        names = []
        for message in messages:
            name = hashlib.sha256(str(next(self._numbers)).encode()).hexdigest()
            give_id(message, name)
            self.waiting[name] = message
            self.seen.append((message.metadata.dst_node_id, message.metadata.message_type))
            names.append(name)
        return names

    def pull_messages(self, message_ids):
        names = sorted(name for name in message_ids if name in self.waiting)
        ready = [str(n) for n in self.rng.permutation(names) if self.rng.random() < 0.7]
        first = {}  # a SuperNode does one message after the other
        for name in self.waiting:
            first.setdefault(self.waiting[name].metadata.dst_node_id, name)
        return [self._answer(n) for n in ready if n in first.values()]

    def _answer(self, name):
        message = self.waiting.pop(name)
        try:
            return app(message, self.contexts[message.metadata.dst_node_id])
        except Exception as error:  # as Flower's runtime does
            return Message(
                Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, str(error)), reply_to=message
            )

    def send_and_receive(self, messages, *, timeout=None):
        raise NotImplementedError


def nodes(count):
    return [{"partition-id": i, "num-partitions": count, "threads": 1} for i in range(count)]


class Clock:
    """The wall's, for whoever waits by it: it shows how long everybody has waited.

    And a little more at every look, as there is time between any two.
    """

    def __init__(self):
        self.now = 0.0

    def monotonic(self):
        self.now += 1e-6
        return self.now

    def sleep(self, seconds):
        self.now += seconds


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr("fl.flower.grid_view.time", Clock())


def deploy(tmp_path, overrides, count, *, configs=None, **run_config):
    told = {"overrides": overrides, "directory": str(tmp_path / "run"), "wait-s": 5.0, **run_config}
    grid = LoopbackGrid(nodes(count) if configs is None else configs, told)
    context = Context(7, 1, {}, RecordDict(), told)
    return grid, deployed_server.run(grid, context)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_deployment_ends_with_the_model_of_the_simulator(family, tmp_path):
    overrides = overrides_of(family, num_clients=3)
    deploy(tmp_path, overrides, 3)
    assert_same_model(family, overrides, tmp_path / "run")


AVERAGE = overrides_of("robust, clients with momentum", num_clients=3)


def test_poisoned_clients_poison_their_own_data(tmp_path):
    overrides = f"{AVERAGE} attack=label_flip num_byzantine=1"
    _, summary = deploy(tmp_path, overrides, 3)
    assert len(summary["extra"]["byzantine"]) == 1
    assert_same_model("robust, clients with momentum", overrides, tmp_path / "run")
    _, honest = deploy(tmp_path, AVERAGE, 3)
    assert honest["model_sha256"] != summary["model_sha256"]


def test_a_run_leaves_its_files_and_knows_no_energy(tmp_path):
    _, summary = deploy(tmp_path, f"{AVERAGE} views=true", 3)
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names == {
        "summary.json",
        "metrics.csv",
        "trace.parquet",
        "model.safetensors",
        "tb",
        "plots",
    }
    assert summary["totals"]["energy_j"]["total"] == 0
    assert summary["totals"]["virtual_s"] == pytest.approx(summary["totals"]["wall_s"])
    assert summary["extra"]["deployment"] == {
        "run_id": "7",
        "overrides": shlex.split(f"{AVERAGE} views=true"),
    }


# ---- what is refused -----------------------------------------------------------------------------

WRONG_NODES = {
    "no partition-id": ([{}, *nodes(3)[1:]], "node_config['partition-id'] is None"),
    "of another deployment": (nodes(2), "num-partitions=2, and the experiment has num_clients=3"),
    "too large": (
        [{"partition-id": 3, "num-partitions": 3}],
        "partition-id=3 and num-partitions=3",
    ),
    "no number": ([{"partition-id": "a", "num-partitions": 3}], "'a'; it must be a whole number"),
    "twice": ([*nodes(3)[:2], nodes(3)[1]], "were both started with partition-id=1"),
    "too few": (nodes(3)[:2], "2 of 3 clients are connected after 0.05 s; there is no SuperNode"),
}


@pytest.mark.parametrize("wrong", WRONG_NODES)
def test_nodes_that_do_not_fit_are_named_before_anything_is_trained(wrong, tmp_path):
    configs, reason = WRONG_NODES[wrong]
    told = {"overrides": AVERAGE, "directory": str(tmp_path / "run"), "wait-s": 0.05}
    grid = LoopbackGrid(configs, told)
    with pytest.raises(ConfigError) as refusal:
        deployed_server.run(grid, Context(7, 1, {}, RecordDict(), told))
    assert reason in str(refusal.value)
    assert {kind for _, kind in grid.seen} == {WHO}
    assert not (tmp_path / "run").exists()


REFUSED = {
    "attack=alie num_byzantine=1": "attack is ALIE, and is of the simulator only",
    "attack=sign_flip num_byzantine=1": "attack is SignFlip, and is of the simulator only",
    "checkpoint=off": "keeps nothing to resume a run from",
    "fleet=uniform": "fleet is set, and is of the simulator only",
    "fleet.faults.dropout=0.1": "fleet is set, and is of the simulator only",
    "executor=serial": "SuperNodes run the clients",
    "fail_fast=true": "is an error reply",
    "personal.every=1": "strategy.evaluate_model=personal",
    "date=now": "clocks of a deployment show the time of their hosts",
    "app=examples/fedbuff_app": "flwr run DIR runs another app",
    "cost_model.seconds=2": "cost_model.seconds=2 has no effect without app=DIR",
    "client.batching=measured": "a SuperNode trains one client",
    "hydra.run.dir=x": "the run's directory says where it is written",
    "strategy=fedavg,fedadam": "--multirun",
    "num_round=3": "did you mean num_rounds",
    "+train_config.proximal-mu=0.1": "proximal-mu",
}


@pytest.mark.parametrize("override", REFUSED)
def test_what_only_the_simulator_can_do_is_refused_with_a_reason(override, tmp_path):
    told = {"overrides": f"{AVERAGE} {override}", "directory": str(tmp_path / "run")}
    grid = LoopbackGrid(nodes(3), told)
    with pytest.raises(ConfigError) as refusal:
        deployed_server.run(grid, Context(7, 1, {}, RecordDict(), told))
    assert REFUSED[override] in str(refusal.value)
    assert {kind for _, kind in grid.seen} <= {WHO}


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("overrides", 3, "it must be text"),
        ("overrides", "model.hidden='[", "No closing quotation"),
        ("directory", False, "it must be text"),
        ("nodes", -1, "it must be a whole number"),
        ("wait-s", 0, "it must be a positive number"),
    ],
)
def test_the_runs_own_settings_are_checked(key, value, reason):
    with pytest.raises(ConfigError, match=reason):
        read_settings({key: value})


@pytest.mark.parametrize("strategy", ["fedper", "ditto"])
def test_a_goal_of_the_simulator_is_refused_with_the_keys_that_replace_it(strategy):
    overrides = [f"strategy={strategy}", "num_clients=3"]
    with pytest.raises(ConfigError) as refusal:
        compose_experiment(overrides)
    for key in ("personal.every is 5", "fraction_evaluate=", "target.metric=client_accuracy"):
        assert key in str(refusal.value)
    compose_experiment([*overrides, "personal.every=null", "target.metric=client_accuracy"])


def test_a_fleet_that_a_strategy_has_chosen_for_the_simulator_is_no_obstacle(capsys):
    compose_experiment(["strategy=dpsgd", "num_clients=3"])
    assert "sets topology=ring, client=sgd_step" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="fleet is set, and is of the simulator only"):
        compose_experiment(["strategy=dpsgd", "num_clients=3", "fleet=uniform"])


@pytest.mark.parametrize("family", ["replicas", "several models"])
def test_a_deployment_composes_the_configuration_of_the_command_line(family):
    overrides = overrides_of(family, num_clients=3).split()
    config = compose_experiment(overrides)
    with initialize_config_module("fl.conf", version_base=None):
        expected = compose("config", overrides)
    plain = [OmegaConf.to_container(each) for each in (config, expected)]
    for each, batching in zip(plain, ("off", "auto"), strict=True):
        parts = (each.get("tasks") or {"": each}).values()
        assert [part["client"].pop("batching") for part in parts] == [batching] * len(parts)
    assert plain[0] == plain[1]


def test_attacks_among_peers_are_refused_as_well(tmp_path):
    gossip = overrides_of("gossip", num_clients=3)
    with pytest.raises(ConfigError, match="attack is ALIE, and is of the simulator only"):
        deploy(tmp_path, f"{gossip} attack=alie num_byzantine=1", 3)


def test_levels_by_the_memory_of_simulated_devices_are_refused(tmp_path):
    parts = overrides_of("parts of the model", num_clients=3)
    with pytest.raises(ConfigError, match=r"strategy.sub_models.capacity is ByMemory.*levels"):
        deploy(tmp_path, f"{parts} strategy/capacity=by_memory", 3)


def test_more_nodes_than_clients_would_be_awaited_in_vain(tmp_path):
    with pytest.raises(ConfigError, match="nodes is 4, and the experiment has num_clients=3"):
        deploy(tmp_path, AVERAGE, 3, nodes=4)


def test_the_bundle_that_flwr_sends_is_the_package_and_small():
    bundle = build_fab_from_disk(ROOT)
    assert len(bundle) < 6e6
    with zipfile.ZipFile(io.BytesIO(bundle)) as archive:
        names = archive.namelist()
    outside = {name for name in names if not name.startswith("fl/")}
    assert outside == {"pyproject.toml", ".info/CONTENT"}
    # All that the package has is there, but for the files of `fl init` and the mark of its types.
    package = [path.relative_to(ROOT) for path in (ROOT / "fl").rglob("*") if path.is_file()]
    left_out = {".pyc", ".txt", ".typed"}
    assert {p.as_posix() for p in package if p.suffix not in left_out} == {*names} - outside


# ---- the grid ------------------------------------------------------------------------------------


@pytest.fixture
def three():
    loopback = LoopbackGrid(nodes(3), {"overrides": AVERAGE})
    grid = DeployedGrid(loopback, 3)
    grid.await_clients(3, 5.0)
    return loopback, grid


def queries(grid):
    return [Message(RecordDict(), node, "query") for node in grid.get_node_ids()]


def test_clients_are_called_as_on_the_simulator_and_answer_in_order(three):
    _, grid = three
    assert grid.get_node_ids() == [node_id(i) for i in range(3)]
    replies = grid.send_and_receive(queries(grid), timeout=5.0)
    assert [reply.metadata.src_node_id for reply in replies] == grid.get_node_ids()
    assert [r.metadata.reply_to_message_id for r in replies] == ["0.0", "1.0", "2.0"]
    replies = grid.send_and_receive(queries(grid), timeout=5.0)
    assert [r.metadata.reply_to_message_id for r in replies] == ["0.1", "1.1", "2.1"]
    sizes = [reply.content["metrics"]["num-examples"] for reply in replies]
    assert sum(sizes) == 1438  # of the digits' 1,797 examples a fifth is held out


def test_a_node_that_was_restarted_takes_its_own_place(three):
    loopback, grid = three
    old = grid._nodes[1]
    loopback.online.remove(old)
    loopback.contexts[5] = Context(1, 5, nodes(3)[1], RecordDict(), {"overrides": AVERAGE})
    loopback.online.append(5)
    assert grid.get_node_ids() in ([node_id(0), node_id(2)], [node_id(i) for i in range(3)])
    grid.await_clients(3, 5.0)
    loopback.seen.clear()
    grid.send_and_receive(queries(grid), timeout=5.0)
    assert 5 in {node for node, _ in loopback.seen}
    assert old not in {node for node, _ in loopback.seen}


def test_a_node_that_claims_the_place_of_another_is_left_out(three, caplog):
    loopback, grid = three
    loopback.contexts[5] = Context(1, 5, nodes(3)[1], RecordDict(), {"overrides": AVERAGE})
    loopback.online.append(5)
    for _ in range(20):
        assert len(grid.get_node_ids()) == 3
    loopback.seen.clear()
    grid.send_and_receive(queries(grid), timeout=5.0)
    assert {node for node, _ in loopback.seen} == set(loopback.ids)
    assert "both started with partition-id=1" in caplog.text


def test_a_message_that_the_superlink_refuses_is_a_client_that_failed(three):
    loopback, grid = three
    loopback.refuses = True
    replies = grid.send_and_receive(queries(grid), timeout=5.0)
    assert [reply.error.code for reply in replies] == [ErrorCode.NODE_UNAVAILABLE] * 3
    assert grid.trace.faults() == {"dropout": 3}
    assert grid.in_flight == 0


def test_a_round_ends_at_its_timeout_with_those_who_answered(three, monkeypatch):
    loopback, grid = three
    silent = grid._nodes[1]
    answer = loopback._answer
    monkeypatch.setattr(
        loopback,
        "pull_messages",
        lambda names: [
            answer(n) for n in list(names) if loopback.waiting[n].metadata.dst_node_id != silent
        ],
    )
    replies = grid.send_and_receive(queries(grid), timeout=0.1)
    assert [reply.metadata.src_node_id for reply in replies] == [node_id(0), node_id(2)]
    assert grid.trace.faults() == {"timeout": 1}
    assert grid.in_flight == 0


def test_waiting_does_not_move_the_generator_that_strategies_draw_from(three, monkeypatch):
    loopback, grid = three
    pull = loopback.pull_messages
    monkeypatch.setattr(loopback, "pull_messages", lambda names: (random.random(), pull(names))[1])
    random.seed(1)
    grid.send_and_receive(queries(grid), timeout=5.0)
    drawn = random.random()
    random.seed(1)
    assert drawn == random.random()
