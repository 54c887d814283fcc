"""The command line as a user meets it: results, messages, exit status."""

from __future__ import annotations

import json
import logging
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import wraps
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from every_strategy import mostly_slow
from omegaconf import DictConfig

import fl
import fl.cli
import fl.data
from fl.data import Source
from fl.execution import cluster
from fl.runs.groups import top_groups
from fl.runs.usage import GROUPS
from fl.simulation.world.fleets import uniform

QUICK = [
    "executor=serial",
    "progress=false",
    "fleet=uniform",
    "model=logistic",
    "num_clients=10",
    "num_rounds=1",
]

SWEEP = ["-m", *QUICK, "views=false"]  # a job draws as long as it trains

Call = Callable[..., None]


@pytest.fixture
def refused(call: Call, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., str]:
    """Runs `fl`, which must stop before anything slow starts, and returns what it says."""

    def run(*arguments: str) -> str:
        with pytest.raises(SystemExit) as stopped:
            call(*arguments, f"hydra.run.dir={tmp_path / 'out'}")
        assert stopped.value.code == 1
        captured = capsys.readouterr()
        assert captured.out == ""
        lines = captured.err.splitlines()
        assert all(line.startswith("fl: ") for line in lines), captured.err
        assert not (tmp_path / "out").exists()
        return "\n".join(lines)

    return run


def summary_of(directory: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((directory / "summary.json").read_text("utf-8"))
    return found


# ---- runs ----------------------------------------------------------------------------------------


def test_run_prints_a_table_leaves_its_files_and_nothing_else_is_said(
    call: Call, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    call(*QUICK, f"hydra.run.dir={tmp_path}")
    captured = capsys.readouterr()
    assert "Run completed" in captured.out
    assert captured.err == ""  # neither Flower's remarks nor Hydra's
    assert "fraction_evaluate" not in captured.out
    summary = summary_of(tmp_path)
    assert summary["status"] == "completed"
    assert summary["config"]["num_clients"] == 10
    assert f"{tmp_path}: summary.json" in captured.out  # to be copied, whatever the width
    left = {path.name for path in tmp_path.iterdir()}
    assert left >= {
        "summary.json",
        "metrics.csv",
        "trace.parquet",
        "timeline.json.gz",
        "tb",
        "plots",
    }


def test_run_that_diverged_has_status_1_and_a_warning_of_a_kind_is_shown_once(
    call: Call, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    quick = [o for o in QUICK if not o.startswith("model=")]
    diverging = [*quick, "client.rule.lr=1e30", "num_rounds=4", "views=false"]
    with pytest.raises(SystemExit) as stopped:
        call(*diverging, f"hydra.run.dir={tmp_path / 'one'}")
    assert stopped.value.code == 1
    said = capsys.readouterr().err.splitlines()
    assert summary_of(tmp_path / "one")["status"] == "diverged"
    assert said[-1].startswith("fl: the run diverged: ")
    assert sum("left out" in line for line in said) == 1
    kept = (tmp_path / "one" / "fl.log").read_text("utf-8")
    assert kept.count("left out") == 40  # of 10 clients, in 4 rounds
    call("-m", *diverging, f"hydra.sweep.dir={tmp_path / 'many'}")  # a result as any other


def test_run_that_ends_far_worse_than_it_began_has_a_warning(
    call: Call, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    short = [*QUICK, "num_rounds=2", "views=false"]
    call(*short, "client.rule.lr=100", f"hydra.run.dir={tmp_path / 'high'}")
    assert "the last loss is" in capsys.readouterr().err
    call(*short, f"hydra.run.dir={tmp_path / 'good'}")
    assert "the last loss is" not in capsys.readouterr().err


def test_module_is_the_command(call: Call, tmp_path: Path) -> None:
    call(*QUICK, f"hydra.run.dir={tmp_path / 'fl'}")
    done = subprocess.run(
        [sys.executable, "-m", "fl", *QUICK, f"hydra.run.dir={tmp_path / 'module'}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    one, other = summary_of(tmp_path / "fl"), summary_of(tmp_path / "module")
    for name in ("trace_sha256", "model_sha256", "config_digest"):
        assert one[name] == other[name]


def test_parts_that_do_not_go_together_are_told_with_what_is_wrong_by_itself(
    refused: Callable[..., str],
) -> None:
    told = refused(
        *QUICK,
        "strategy=diloco",
        "client=inner_adamw",
        "compressor@downlink=ef21",
        "attack=alie",
        "attack.z=abc",
        "num_byzantine=2",
        "round_timeout_s=inf",
    )
    for key_and_value in ("round_timeout_s is inf", "attack.z='abc'", "downlink is EF21"):
        assert key_and_value in told


@pytest.mark.parametrize(
    ("overrides", "key_and_value"),
    [
        (
            ["aggregator=krum", "aggregator.f=5", "strategy.clients=10"],
            "n=10 vectors, of which f=5",
        ),
        (["compressor=qsgd", "feedback=marina", "strategy.clients=9"], "compressor is Marina"),
        (["strategy=dpsgd", "topology.num_nodes=11"], "11 nodes and the fleet 10 clients"),
        (["strategy=onebit_adam", "strategy.rule.workers=9"], "10 clients and 9 workers"),
    ],
)
def test_what_so_many_clients_cannot_do_is_told_before_anything_starts(
    refused: Callable[..., str], overrides: list[str], key_and_value: str
) -> None:
    assert key_and_value in refused(*QUICK, *overrides)


def test_directory_of_a_completed_run_is_not_taken_by_another(
    call: Call, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    call(*QUICK, f"hydra.run.dir={tmp_path}")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(SystemExit):
        call(*QUICK, "seed=7", f"hydra.run.dir={tmp_path}")
    assert f"{tmp_path} holds a completed run" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_status_of_a_refused_run_is_1_and_its_message_goes_to_standard_error() -> None:
    command = [sys.executable, "-m", "fl", *QUICK, "client.rule.learning_rate=1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("fl: there is no key 'client.rule.learning_rate'")


def test_help_does_not_wait_for_heavy_imports() -> None:
    code = (
        "import sys; sys.argv = ['fl', '--help']\n"
        "from fl.cli import main\n"
        "try: main()\n"
        "finally: print('HEAVY', sorted({'torch', 'flwr', 'ray', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.startswith("Federated learning with real training in simulated time.")
    assert "\nstrategy  " in done.stdout
    assert "HEAVY []" in done.stdout


def test_sweep_runs_every_combination(call: Call, tmp_path: Path) -> None:
    call(*SWEEP, "strategy=fedavg,fedprox", "seed=0,1", f"hydra.sweep.dir={tmp_path}")
    summaries = [summary_of(path.parent) for path in sorted(tmp_path.glob("*/summary.json"))]
    ran = [
        (s["seed"], s["config"]["strategy"]["rule"]["_target_"].split(".")[-1]) for s in summaries
    ]
    assert ran == [(0, "FedAvg"), (0, "FedProx"), (1, "FedAvg"), (1, "FedProx")]


def test_failed_job_of_a_sweep_is_named_and_does_not_stop_the_others(
    call: Call, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with pytest.raises(SystemExit) as stopped:
        call(*SWEEP, "client.rule.lr=0.1,-1,0.2", f"hydra.sweep.dir={tmp_path}")
    assert stopped.value.code == 1
    said = "client.rule.lr is -1; it must be finite and above 0"
    reason = f"job 1 (client.rule.lr=-1): {said}\n"
    assert capsys.readouterr().err == (  # told before the first begins, and again at the end
        f"fl: {reason}fl: 1 of 3 jobs failed; the same command with hydra.sweep.dir={tmp_path} "
        f"runs only what is missing:\n  {reason}"
    )
    names = {path.name.rpartition("-")[0] for path in tmp_path.iterdir() if path.is_dir()}
    assert names == {"client.rule.lr=0.1", "client.rule.lr=0.2"}  # what was refused left nothing


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, float, int]]:
    """What is built and run in this process, in order: which of the two, client.rule.lr, seed."""
    from fl.runs import build, run

    order: list[tuple[str, float, int]] = []
    for module, name in ((build, "prepare"), (run, "run_to_end")):
        original = getattr(module, name)

        def noting(
            config: DictConfig, *more: Any, _name: str = name, _do: Any = original, **k: Any
        ):
            order.append((_name, config.client.rule.lr, config.seed))
            return _do(config, *more, **k)

        monkeypatch.setattr(module, name, noting)
    return order


def test_jobs_that_cannot_be_are_refused_before_the_first_begins_and_built_once(
    call: Call, built: list[tuple[str, float, int]], tmp_path: Path
) -> None:
    with pytest.raises(SystemExit):
        call(*SWEEP, "client.rule.lr=0.1,-1", "seed=0,1", f"hydra.sweep.dir={tmp_path}")
    # Of jobs that differ in their seed alone, the second is built if the first is refused.
    assert built[:3] == [("prepare", 0.1, 0), ("prepare", -1, 0), ("prepare", -1, 1)]
    assert built[3:] == [(what, 0.1, seed) for seed in (0, 1) for what in ("prepare", "run_to_end")]


@pytest.mark.slow
def test_jobs_that_have_completed_are_not_built_again(
    call: Call, built: list[tuple[str, float, int]], tmp_path: Path
) -> None:
    sweep = [*SWEEP, "client.rule.lr=0.1,0.2", f"hydra.sweep.dir={tmp_path}"]
    call(*sweep)
    built.clear()
    call(*sweep)
    assert built == []


def test_ray_is_not_started_for_a_sweep_of_which_no_job_can_be(
    call: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    started = []
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(cluster, "start_shared", started.append)
    sweep = ["-m", *QUICK[1:], "client.rule.lr=-1,-2", f"hydra.sweep.dir={tmp_path}"]
    with pytest.raises(SystemExit):
        call(*sweep)
    assert started == []


def test_data_sets_are_loaded_once_to_check_the_jobs_of_a_sweep(
    call: Call,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    loaded = []
    load = fl.data.load_digits

    @wraps(load)
    def counting(**keys: Any) -> Source:
        loaded.append(keys)
        return load(**keys)

    monkeypatch.setattr(fl.data, "load_digits", counting)
    with pytest.raises(SystemExit):
        call(*SWEEP, "client.rule.lr=-1,-2,-3", f"hydra.sweep.dir={tmp_path}")
    assert len(loaded) == 1


def test_a_check_sees_the_environment_that_hydra_makes_for_the_job(
    call: Call, tmp_path: Path
) -> None:
    (tmp_path / "experiment").mkdir()
    mine = "# @package _global_\ntarget:\n  metric: ${oc.env:FL_TEST}\n"
    (tmp_path / "experiment" / "mine.yaml").write_text(mine)
    folder = ["-cd", str(tmp_path)]
    more = ["+experiment=mine", "+hydra.job.env_set.FL_TEST=loss"]
    call(*folder, *QUICK, *more, "views=false", f"hydra.run.dir={tmp_path / 'one'}")
    call(*folder, *SWEEP, *more, "seed=0,1", f"hydra.sweep.dir={tmp_path / 'many'}")


@pytest.mark.slow
def test_same_sweep_again_runs_only_what_is_missing_or_changed(
    call: Call, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    sweep = [*SWEEP, f"hydra.sweep.dir={tmp_path}"]
    call(*sweep, "seed=0,1", "client.rule.lr=0.1,0.2")
    written = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/summary.json")}
    assert len(written) == 4
    killed, damaged, failed, _ = sorted(written)
    killed.unlink()
    damaged.write_text("{")
    failed.write_text(failed.read_text().replace('"status": "completed"', '"status": "failed"'))
    capsys.readouterr()
    call(*sweep, "client.rule.lr=0.1,0.2,0.3", "seed=0,1")  # two more, and numbered otherwise
    assert capsys.readouterr().out.count("completed before, in") == 1
    again = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/summary.json")}
    assert len(again) == 6
    assert [path for path in written if again[path] == written[path]] == [sorted(written)[3]]
    call(*sweep, "client.rule.lr=0.1,0.2,0.3", "seed=0,1", "num_rounds=2")
    assert len(list(tmp_path.glob("*/summary.json"))) == 12  # none of the old ones was taken


def test_folder_of_a_completed_job_is_not_given_to_another(
    call: Call, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    sweep = [*SWEEP, f"hydra.sweep.dir={tmp_path}", "hydra.sweep.subdir=mine"]
    call(*sweep, "seed=0")
    before = (tmp_path / "mine" / "summary.json").read_bytes()
    with pytest.raises(SystemExit):
        call(*sweep, "seed=1")
    assert "mine holds a completed run of another configuration" in capsys.readouterr().err
    assert (tmp_path / "mine" / "summary.json").read_bytes() == before


# ---- wrong configurations ------------------------------------------------------------------------

SHARDING = "{_target_:fl.strategies.Cephalo,batch:64}"
ENDS_AT_0 = "{_target_:fl.clients.CosineDecay,period:1}"
FLOWERS = "~strategy +strategy._target_=flwr.serverapp.strategy"

BAD = {
    # Several members where one can be.
    "client/correction=[proximal,control_variates]": "client/correction is one part: choose one",
    "strategy=[fedavg,fedprox]": "strategy=[fedavg,fedprox] names 2 members",
    # Keys and members that do not exist.
    "num_clints=3": "there is no key 'num_clints'; did you mean num_clients",
    "clint.rule.lr=1": "there is no key 'clint.rule.lr'; did you mean client.rule.lr",
    "client.lr=1": "there is no key 'client.lr'; did you mean client.rule.lr",
    "fleet.faults.droput=0.1": "did you mean fleet.faults.dropout",
    "strategy.foo=1": "there is no key 'strategy.foo'; strategy may have: ",
    "strategy.rule.buffer_size=3": "no key 'strategy.rule.buffer_size' here, only in other",
    "client.correction.mu=1": "there is no key 'client.correction.mu' here: choose a member that",
    "+num_clints=3": "there is no key 'num_clints'; did you mean num_clients",
    "+client.foo=1": "there is no key 'client.foo'; client (fl.clients.TrainingApp) has: ",
    "+strategy.foo=1": "strategy: Rounds refuses its arguments: ",
    "strategy=data_parallel +strategy.sharding._target_=fl.strategies.Cephalo": (
        "strategy.sharding: Cephalo needs batch: give +strategy.sharding.batch=VALUE"
    ),
    "battery=phone battery.knee=1": "battery.knee is 1; it must be above 0 and below 1",
    "+target.metrics=loss": "there is no key 'target.metrics'; did you mean target.metric",
    "run_config.lr=1": "there is no key 'run_config.lr': to add it, write +run_config.lr=VALUE",
    "run_config={lr:1}": "run_config takes one key at a time: to add it, write +run_config.KEY",
    "strategy=favas runtime=flower": "strategy.interaction_s is 5, and with this runtime",
    "strategy=fedavgg": "there is no strategy=fedavgg; did you mean fedavg or",
    "strategy=xyz": "there is no strategy=xyz; there are: adpsgd, apfl, async_diloco",
    "fleet/availability=nightly": "there are: always, behaviour, bernoulli, charging, cyclic",
    "model._target_=fl.models.MPL": "the module fl.models has no MPL; did you mean fl.models.MLP?",
    "seed": "'seed' is neither KEY=VALUE nor a command; the commands are compare, help, init, ",
    "resumee": "'resumee' is neither KEY=VALUE nor a command; did you mean fl resume?",
    "--multrun": "there is no option --multrun; did you mean --multirun?",
    "model._target_=mine.Net": "there is no module mine: neither mine.py nor mine/ in ",
    "attack._target_=fl.attacks.ALIE": "write +attack._target_=VALUE",
    "+attack.z=1": "attack is {'z': 1}, without _target_",
    "+topology._target_=fl.topologies.Ring": "+topology._target_=fl.topologies.Ring has no effect",
    "model._target_=fl.models.MLP model.init=glorot": "~model.init",
    "model._target_=fl.models.MLP +model.hiden=[3]": "there is no key 'model.hiden'; model (fl.mod",
    "aggregator=median aggregator._target_=fl.aggregation.Mean aggregator.even=lower": "~aggreg",
    "+model._target_=fl.models.MLP": "model._target_ is there already",
    "model=null": "there is no model: choose one, model=NAME",
    "strategy=null aggregator=median": "there is no strategy: choose one",
    "strategy=fedavg_m client=gradient": "strategy.rule.lr is taken from client.rule.lr, which",
    "client.rule.lr=null": "client.rule.lr is null; it must be",
    "client.rule.lr=nan": "client.rule.lr is nan; it must be finite and above 0",
    "compressor=topk compressor.density=nan": "density is nan; it must be above 0 and at most 1",
    "target.value=nan": "target.value is nan; it must be a number",
    "fleet/slowdown@fleet.task_slowdown=normal": "choose one that has it (durations)",
    "fleet.task_slowdown.mean=3": "there is no key 'fleet.task_slowdown' here",
    "strategy=fedbuff strategy.fraction_trian=1": "; strategy may have: aggregator, concurrency",
    "strategy=fedbuff strategy.rule.server_optimizer._target_=Adam": "there is no module Adam",
    "strategy=fedbuff strategy.bufer_size=1": "did you mean strategy.rule.buffer_size",
    "strategy=dpsgd topology=hypercube": "num_clients is 10; it must be a power of 2",
    "strategy=fedasync aggregator=krum": "(strategy: ca2fl, fadas, fedbuff, ",
    # Parts of another kind than their key's.
    "strategy.rule._target_=fl.strategies.QuAFL ~strategy.rule.eta": "strategy.rule is QuAFL()",
    "client.rule._target_=fl.models.MLP": "client.rule._target_ is fl.models.MLP, which makes MLP",
    "selection._target_=fl.topologies.Ring": "selection._target_ is fl.topologies.Ring",
    "strategy=dpsgd topology.weights._target_=fl.topologies.Ring": "topology.weights._target_ is",
    "aggregator=median +preaggregation.a._target_=fl.aggregation.Mean": "preaggregation.a._target_",
    "strategy=fedast tasks.digits.client.rule._target_=fl.models.MLP": "tasks.digits.client.rule",
    "data._target_=collections.Counter": "data._target_ is collections.Counter",
    "model._target_=collections.Counter": "model._target_ is collections.Counter",
    # Values of another kind.
    "num_clients=many": "num_clients is 'many'; it must be a number, like the default 100",
    "client.rule.lr=high": "client.rule.lr is 'high'; it must be a number, like the default 0.1",
    "model=mlp model.hidden=64": "model.hidden is 64; it must be a list, like the default [64]",
    "power=dvfs power.caps={low-end:0.4}": "to add what it holds, write +power.caps=VALUE",
    "power=dvfs power.cap={low-end:0.4}": "by names, it is +power.caps.NAME=VALUE",
    "battery=phone battery.capacity_j={a:1}": "by names, it is +battery.capacities_j.NAME=VALUE",
    "fleet/checkpointing=lazy": "fleet/checkpointing is chosen only with fleet=datacenters",
    "strategy=diloco fleet=datacenters battery=phone": "battery.capacity_j is 55440 J, but the",
    f"strategy=diloco +strategy.sharding={SHARDING}": "as with strategy=data_parallel: leave shard",
    "fail_fast=sometimes": "fail_fast is 'sometimes'; it must be true or false",
    "strategy=1": "strategy=1 names no member: leave it out, or ~strategy takes",
    "num_clients=2.5": "num_clients is 2.5; it must be a whole number, at least 1",
    "seed=-1": "seed is -1; it must be a whole number, at least 0",
    "client.batch_size=2.5": "client.batch_size is 2.5; it must be a whole number, at least 1",
    "+train_config.lr={a:1}": "train_config is {'lr': {'a': 1}}; every value must be a number, te",
    # Numbers out of range, and parts that do not fit together.
    "partition.alpha=-1": "partition.alpha=-1: a Dirichlet concentration must be positive",
    "client.rule.lr=0": "client.rule.lr is 0; it must be finite and above 0",
    "strategy=diloco strategy.rule.optimizer.lr=0": "optimizer.lr is 0; it must be finite",
    "strategy=fedbuff strategy.rule.staleness.a=-1": "staleness.a is -1; it must be at least 0",
    "strategy=fedavg aggregator=krum aggregator.power=3": "aggregator.power=3",
    "strategy=fedast tasks.digits.client.rule.lr=0": "tasks.digits.client.rule.lr is 0; it must",
    "attack=gauss num_byzantine=2 attack.sigma=-1": "attack.sigma=-1: must not be negative",
    "client.batch_size=0": "client.batch_size is 0; it must be a whole number, at least 1",
    "checkpoint.limit_gb=0": "checkpoint.limit_gb is 0; it must be positive and finite",
    "strategy.fraction_train=0": "strategy.fraction_train is 0, so no client would train",
    "target.metric=acuracy": "which no evaluation of this run reports: did you mean accuracy?",
    "+train_config.lr=-1": "train_config tells clients what they refuse: ",
    "num_clients=5000": "is more than the 1438 training examples of 'digits' allow",
    "fleet.down_bps=0": "links.down_bps of client 0 (client) is 0.0; it must be positive",
    "fleet.memory_bytes=1000": "'client' of fleet 'uniform', has 1000 bytes",
    "strategy.fraction_train=2": "strategy.fraction_train is 2; it is a share, between 0 and 1",
    "strategy.min_available_nodes=11": "strategy.min_available_nodes is 11, but there are 10 ",
    "client.local_steps=3": "local_epochs is 1 and local_steps is 3; set one of them",
    "executor=ray executor.num_actors=0": "executor.num_actors is 0; it must be a whole number",
    "strategy=fedavg_m +train_config.lr=0.05": "rule.lr is 0.1, but train_config.lr is 0.05",
    "strategy=scaffold_m strategy.rule.lr=0.2": "rule.lr is 0.2, but client.rule.lr is 0.1",
    "strategy=fednova strategy.rule.mu=0.5": "strategy.rule.mu is 0.5, but the clients have no",
    "strategy=fednova client/correction=model_contrast model=mlp": "strategy.rule.mu is 1.0, but",
    "strategy=fedvarp strategy.rule.population=9": "rule.population is 9, but there are 10 clients",
    "strategy=proxskip selection=tifl": "selection is TiFL, which leaves clients out",
    "strategy=proxskip strategy.rule.p=null": "strategy.rule.p is null; it must",
    "strategy=optex strategy.noise_scale=0.9": "strategy.noise_scale is 0.9, and clients of OptEx",
    "lawa=null": "lawa is null; it must have its keys",
    "lawa.k=2 lawa.every=2": "lawa.every is 2, and num_rounds is 1",
    "strategy=savic": "num_rounds=1 learns nothing",
    "strategy=fedamd num_rounds=2 strategy.rule.p=1": "strategy.rule.p is 1; it must",
    f"num_rounds=2 strategy.lr_schedule={ENDS_AT_0}": "strategy.lr_schedule is 0 in round 2 of 2",
    "strategy=dpsgd topology.num_nodes=9": "topology.num_nodes is 9, but there are 10 clients",
    "strategy=proxskip client=adamw": "client.rule is AdamW, but its steps",
    "strategy=fedast attack@tasks.digits.attack=ipm num_byzantine=1": "digits.attack._target_ is",
    f"{FLOWERS}.QFedAvg +strategy.client_learning_rate=0.1": "set +strategy.train_loss_key=train-l",
    f"{FLOWERS}.FedXgbBagging": "strategy is FedXgbBagging, whose clients grow trees",
    "strategy=scaffold strategy.rule.num_clients=9": "rule.num_clients is 9, but there are 10 clie",
    "fleet/availability=cyclic fleet.availability.rates.least=0.2": "rates.least is 0.2; it must",
    "fleet/availability=cyclic fleet.availability.rates=2": "fleet.availability.rates is 2; every",
    "fleet/availability=cyclic fleet.availability.rates=[1]": "~fleet.availability.rates +fleet.",
    "strategy=fedast fleet/availability=cyclic": "fleet.availability.rates.data is ${data}, but",
    "fleet.jitter=1e9": "devices.jitter is 1000000000.0; the sigma",
    "selection=oort selection.loss_key=foo": "selection.loss_key is 'foo'; clients report",
    "strategy=dbw strategy.rule.loss_key=foo": "strategy.rule.loss_key is 'foo'; clients report",
    "target.mode=up": "target.mode is 'up'; it must be 'max' or 'min'",
    "+run_config.lr=1": "+run_config.lr=1 has no effect without app=DIR",
    "fleet/availability=behaviour": "fleet.availability.path has no default: give fleet.availa",
    "fleet=serverless fleet.path=gone.npz": "cannot read gone.npz: No such file or directory",
    "fleet=serverless": "fleet.path needs the environment variable FL_DATA_DIR: set it, or give",
    "strategy=fedast": "model=logistic has no effect, as several tasks are learnt: change tasks.",
    # What is set and nothing reads.
    "strategy=async_sgd aggregator=krum": "aggregator=krum has no effect, as the strategy AsyncSGD",
    "topology=ring": "topology=ring has no effect, as the strategy FedAvg does not read topology",
    "strategy=fedast strategy.rule.window=5": "only strategy.rule.allocation=dynamic reads it",
    "strategy=diloco client.local_steps=5": "strategy.rule.inner_steps counts instead",
    "strategy=dbw client.rule.lr=0.5": "with DBW, strategy.rule.eta counts instead",
    "strategy=demo client=sgd client.rule.lr=0.5": "with DecoupledMomentum, clients take no steps",
    "client.evaluate_on=train": "client.evaluate_on=train has no effect: FedAvg, as it is configur",
    "strategy.min_evaluate_nodes=3": "clients evaluate only with strategy.fraction_evaluate above",
    "evaluate_every=2 evaluate_every_s=5": "evaluate_every=2 has no effect, as evaluate_every_s",
    "personal.contacts=true": "personal.contacts=true has no effect: only personal.every reads it",
    "checkpoint.trust=true": "checkpoint.trust=true has no effect: it is for the ServerApps of",
    "strategy=monna topology/weights=lazy": "topology/weights=lazy has no effect: what a node ag",
    "app=gone target.stop=true": "target.stop is true, and the app itself says when its run ends",
    "app=gone time_limit_s=5": "time_limit_s=5 has no effect with app=gone, which brings its own",
    "app=gone": "app=gone: ",
    "app=gone strategy=fedadam": "strategy=fedadam has no effect with app=gone, which brings its",
}


@pytest.mark.parametrize("arguments", mostly_slow(BAD, [*BAD][::2]))
def test_wrong_configuration_stops_before_training_with_one_line(
    arguments: str, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FL_DATA_DIR", raising=False)
    quick = [
        argument
        for argument in QUICK
        if not arguments.startswith("app=") or argument.split("=")[0] not in ("model", "num_rounds")
    ]
    if "strategy=fedast " in arguments:
        quick.remove("model=logistic")
    assert BAD[arguments] in refused(*quick, *arguments.split())


def test_what_is_wrong_is_told_at_once(refused: Callable[..., str]) -> None:
    keys = refused(*QUICK, "num_clints=3", "strategy=fedavgg", "strategy.foo=1", "clent.rule.lr=1")
    # Nothing is said of the keys of a member that was not found.
    assert [line[:40] for line in keys.splitlines()] == [
        "fl: there is no key 'num_clints'; did yo",
        "fl: there is no strategy=fedavgg; did yo",
        "fl: there is no key 'clent.rule.lr'; did",
    ]
    kinds = refused(*QUICK, "views=9", "client.rule.lr=high", "topology=ring", "seed=-1")
    assert sorted(line.split()[1] for line in kinds.splitlines()) == [
        "client.rule.lr",
        "seed",
        "topology=ring",
        "views",
    ]
    parts = refused(*QUICK, "client.rule.lr=0", "fleet.down_bps=0", "partition.alpha=0")
    assert sorted(line.split()[1].partition("=")[0] for line in parts.splitlines()) == [
        "client.rule.lr",
        "fleet:",
        "partition.alpha",
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [("seed: 1\nseed: 2\n", "line 2: found duplicate key seed"), ("\tseed: 1\n", "line 1: found")],
)
def test_a_file_that_is_no_yaml_is_named_with_its_line(
    text: str, said: str, refused: Callable[..., str], tmp_path: Path
) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    flags = ("--config-dir", str(tmp_path), "--config-name", "mine")
    (line,) = refused(*flags, *QUICK).splitlines()
    assert line.startswith(f"fl: {tmp_path / 'mine.yaml'}, {said}")


def test_refused_run_does_not_touch_a_directory_that_is_there(
    call: Call, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    call(*QUICK, f"hydra.run.dir={tmp_path / 'run'}")
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    for name in ("empty", "run"):
        with pytest.raises(SystemExit):
            call(*QUICK, "client.rule.lr=0", f"hydra.run.dir={tmp_path / name}")
    after = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert after == before
    assert list((tmp_path / "empty").iterdir()) == []


def test_refused_run_has_not_started_ray(
    refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(*_: Any, **__: Any) -> None:
        raise AssertionError("Ray was started")

    monkeypatch.setattr(cluster, "started", start)
    assert "client.rule.lr" in refused(*QUICK[1:], "client.rule.lr=0")


def test_sweep_whose_jobs_cannot_be_composed_has_not_started_ray(
    call: Call,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    def start(*_: Any, **__: Any) -> None:
        raise SystemExit("Ray was started")

    monkeypatch.setattr(cluster, "start_shared", start)
    sweep = ["-m", *QUICK[1:], f"hydra.sweep.dir={tmp_path / 'sweep'}"]
    for wrong in (
        ["strategy=fedavg,fedbuf", "seed=0,1"],
        ["strategy=fedbuff,fedavg", "strategy.concurrency=3"],  # the second has no such key
        ["seed=0,1", "client.rule.lrr=0.1,0.2"],
    ):
        with pytest.raises(SystemExit) as stopped:
            call(*sweep, *wrong)
        assert stopped.value.code == 1
        assert capsys.readouterr().err.startswith("fl: there is no ")
    assert not (tmp_path / "sweep").exists()


def test_sweep_may_leave_a_group_without_a_member(
    call: Call, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call(*SWEEP, "compressor=null,bf16", f"hydra.sweep.dir={tmp_path}")
    jobs = [summary_of(path.parent) for path in tmp_path.rglob("summary.json")]
    assert len({job["totals"]["bytes_up"] for job in jobs}) == 2
    shown = capsys.readouterr().out
    assert "compressor=null" in shown
    assert "~compressor" not in shown.partition("mean")[2]


def test_group_that_is_null_has_no_member(call: Call, tmp_path: Path) -> None:
    for name, more in (("none", []), ("null", ["attack=null", "client/correction=null"])):
        call(*QUICK, *more, "views=false", f"hydra.run.dir={tmp_path / name}")
    none, null = (summary_of(tmp_path / name) for name in ("none", "null"))
    assert null["config_digest"] == none["config_digest"]


@pytest.mark.slow
def test_exception_in_a_part_of_the_users_names_its_key(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(OWN_PARTS)
    run = [*QUICK, "views=false", "aggregator=median", "aggregator._target_=mine.Writing"]
    for more, key, error in (
        ([], "aggregator._target_=mine.Writing", "ValueError"),  # rows are not its own
        (["selection._target_=mine.Heir"], "selection._target_=mine.Heir", "LookupError"),
    ):
        done = elsewhere(tmp_path, *run, *more, f"hydra.run.dir={error}")
        assert done.returncode == 1
        assert f"fl: the run failed in {key}: {error}: " in done.stderr


def test_version_is_that_of_the_package_and_of_what_results_depend_on(
    call: Call, capsys: pytest.CaptureFixture[str]
) -> None:
    call("--version")
    said = capsys.readouterr().out
    assert said.startswith(f"fl {version('fl-simulator')} (Python ")
    assert f"flwr {version('flwr')}, torch {version('torch')}, ray {version('ray')}" in said


def test_help_lists_what_can_be_chosen_and_the_commands(
    call: Call, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    call("--help")
    said = capsys.readouterr().out
    assert max(map(len, said.splitlines())) <= 80
    for word in ("fl report DIR", "fl resume DIR", "fl -m ", "fl help GROUP", "adpsgd"):
        assert word in said
    assert "_base" not in said  # what members are made of
    groups = [line.split()[0] for line in said.splitlines()[-len(GROUPS) :]]
    assert groups == list(GROUPS)
    assert set(groups) == set(top_groups())


def test_help_for_a_group_says_what_members_are_and_for_a_member_its_keys(
    call: Call, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    call("help", "topology")
    said = capsys.readouterr().out
    assert max(map(len, said.splitlines())) <= 80
    assert "  ring: Neighbours i - 1 and i + 1, weights 1/3." in said
    assert "topology/weights=..." in said
    call("help", "strategy=fedbuff")
    assert "buffer_size: 10 # K" in capsys.readouterr().out
    for wrong, known in (("strategie", "strategy"), ("strategy=fedbuf", "fedbuff")):
        with pytest.raises(SystemExit, match="1"):
            call("help", wrong)
        assert known in capsys.readouterr().err


def test_help_knows_the_members_of_folders_of_ones_own(
    call: Call, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "strategy").mkdir()
    (tmp_path / "strategy" / "mine.yaml").write_text(
        "# fl strategy=mine\n# A rule of mine.\nx: 1\n"
    )
    call("help", "-cd", str(tmp_path), "strategy")
    said = capsys.readouterr().out
    assert "  mine: A rule of mine." in said
    assert "  fedavg: " in said
    call("-cd", str(tmp_path), "help", "strategy")
    assert capsys.readouterr().out == said
    call("help", "strategy=mine", f"--config-dir={tmp_path}")
    assert "x: 1" in capsys.readouterr().out


def test_help_into_a_pipe_that_nobody_reads_says_nothing() -> None:
    fl_help = f"{shlex.quote(sys.executable)} -m fl help strategy"
    command = f"{fl_help} | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


OWN_PARTS = """
from dataclasses import dataclass
from fl.aggregation import Median
from fl.selection import Selection

@dataclass(frozen=True)
class Writing(Median):
    def apply(self, rows, context):
        rows.x[0] = 0
        return super().apply(rows, context)

class Base(Selection):
    def select(self, state, opening):
        raise LookupError("nobody")

class Heir(Base):
    pass
"""

OWN_MODULE = """
import os
from torch import nn

class Net(nn.Sequential):
    def __init__(self, input_shape, num_classes):
        super().__init__(nn.Flatten(), nn.Linear(64, num_classes))
        self.seen = 0

    def forward(self, x):
        if self.training and os.environ.get("DIE"):
            self.seen += 1
            if self.seen > 12:
                os._exit(9)
        return super().forward(x)
"""


def elsewhere(
    folder: Path, *arguments: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Runs `fl` in a folder, as its script does: Python puts no folder on the path for it."""

    path = str(Path(fl.__file__).parents[1])
    return subprocess.run(
        [sys.executable, "-P", "-m", "fl", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_module_beside_the_working_directory_is_found_and_found_again_on_resume(
    tmp_path: Path,
) -> None:
    home, other = tmp_path / "home", tmp_path / "other"
    for folder in (home, other):
        folder.mkdir()
    (home / "mine.py").write_text(OWN_MODULE)
    run = [*QUICK, "num_rounds=4", "model._target_=mine.Net", "~model.init", "views=false"]
    died = elsewhere(home, *run, f"hydra.run.dir={tmp_path / 'run'}", DIE="1")
    assert died.returncode == 9, died.stderr
    resume = ["resume", str(tmp_path / "run"), "--allow", "mine"]
    lost = elsewhere(other, *resume)  # it is looked for where `fl resume` is called
    assert lost.returncode == 1
    assert f"no such module in {other}" in lost.stderr
    assert f"the run was started in {home}" in lost.stderr
    again = elsewhere(home, *resume)
    assert again.returncode == 0, again.stderr
    assert summary_of(tmp_path / "run")["status"] == "completed"


@pytest.mark.slow  # Ray takes seconds to start
def test_module_beside_the_working_directory_is_found_by_processes_of_ray(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(OWN_MODULE)
    run = [*QUICK[1:], "model._target_=mine.Net", "~model.init", "executor.num_actors=1"]
    done = elsewhere(tmp_path, *run, "hydra.run.dir=run")
    assert done.returncode == 0, done.stderr


def test_trace_with_too_few_rows_is_refused_by_number(
    refused: Callable[..., str], data_dir: Path
) -> None:
    message = refused(*QUICK, "fleet=serverless", "num_clients=300", "partition=iid")
    assert "num_clients is 300" in message
    assert "fleet.num_clients" not in message  # which refers to it
    assert "256" in message


@pytest.mark.slow  # the library that would download takes seconds to import
def test_data_that_must_be_downloaded_and_cannot_be_names_both_remedies(
    refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FL_DATA_DIR", raising=False)
    message = refused(*QUICK, "data=mnist")
    assert "ylecun/mnist cannot be read from the Hugging Face hub" in message
    assert "go online, or set FL_DATA_DIR to a folder with mnist/train.parquet" in message


# ---- Flower app directories ----------------------------------------------------------------------


@pytest.fixture
def app(tmp_path: Path) -> Path:
    """A Flower app directory. Its server fails as `fail` says."""
    folder = tmp_path / "app"
    package = folder / f"tiny_{tmp_path.name}"  # its own name, for modules stay imported
    package.mkdir(parents=True)
    (folder / "pyproject.toml").write_text(
        "[tool.flwr.app.components]\n"
        f'serverapp = "{package.name}.server_app:app"\n'
        f'clientapp = "{package.name}.client_app:app"\n'
        "[tool.flwr.app.config]\n"
        'num-server-rounds = 1\nlr = 0.5\nfail = ""\nname = ""\n'
        "[tool.flwr.app.config.client]\nstep = 1\n"
    )
    (package / "__init__.py").write_text("")
    (package / "server_app.py").write_text(
        "import os, signal, sys\n"
        "import numpy as np\n"
        "from flwr.app import Array, ArrayRecord, ConfigRecord\n"
        "from flwr.serverapp import ServerApp\n"
        "from flwr.serverapp.strategy import FedAvg\n"
        "app = ServerApp()\n"
        "@app.main()\n"
        "def main(grid, context):\n"
        "    config = context.run_config\n"
        "    result = FedAvg(fraction_evaluate=0.0).start(\n"
        "        grid, ArrayRecord({'w': Array(np.zeros(3))}),\n"
        "        num_rounds=config['num-server-rounds'],\n"
        "        train_config=ConfigRecord({'lr': config['lr']}))\n"
        "    print('final', result.arrays['w'].numpy()[0])\n"
        "    match config['fail']:\n"
        "        case 'raise': raise LookupError('no such model')\n"
        "        case 'exit': sys.exit(0)\n"
        "        case 'interrupt': raise KeyboardInterrupt\n"
        "        case 'signal': os.kill(os.getpid(), getattr(signal, config['name']))\n"
        "        case 'two signals':\n"
        "            try: os.kill(os.getpid(), signal.SIGTERM)\n"
        "            finally: os.kill(os.getpid(), signal.SIGTERM)\n"
    )
    (package / "client_app.py").write_text(
        "from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict\n"
        "from flwr.clientapp import ClientApp\n"
        "app = ClientApp()\n"
        "@app.train()\n"
        "def train(message, context):\n"
        "    step = message.content['config']['lr'] * context.run_config['client.step']\n"
        "    w = message.content['arrays']['w'].numpy() + step\n"
        "    return Message(RecordDict({'arrays': ArrayRecord({'w': Array(w)}),\n"
        "        'metrics': MetricRecord({'num-examples': 1, 'loss': 0.1})}), reply_to=message)\n"
    )
    return folder


@pytest.fixture
def app_arguments(app: Path, tmp_path: Path) -> list[str]:
    # Parts of our own experiments would have no effect, and are refused.
    quick = ["executor=serial", "progress=false", "fleet=uniform", "num_clients=10"]
    return [*quick, f"app={app}", "target=null", f"hydra.run.dir={tmp_path / 'out'}"]


def test_flower_app_directory_runs_with_overrides(
    call: Call, capsys: pytest.CaptureFixture[str], app_arguments: list[str], tmp_path: Path
) -> None:
    call(*app_arguments, "+run_config.num-server-rounds=4", "+run_config.client.step=3")
    # Four rounds of 0.5 * 3, of which both apps must know.
    assert capsys.readouterr().out.count("final 6.0") == 1
    assert (tmp_path / "out" / "fl.log").read_text().count(" | final 6.0\n") == 1
    summary = summary_of(tmp_path / "out")
    assert summary["status"] == "completed"
    assert summary["totals"]["client_updates"] == 4 * 10
    assert summary["final"]["train_loss"] == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("lrr=1", "run_config.lrr is no key of this app; did you mean 'lr'? (it has: "),
        (
            "client.stepp=1",
            "run_config.client.stepp is no key of this app; did you mean 'client.st",
        ),
        ("lr=high", "run_config.lr is 'high'; it must be a number, like the app's own 0.5"),
        ("fail=1", "run_config.fail is 1; it must be text, like the app's own ''"),
    ],
)
def test_override_that_the_app_cannot_have_is_refused(
    refused: Callable[..., str], app_arguments: list[str], override: str, says: str
) -> None:
    assert says in refused(*app_arguments[:-1], f"+run_config.{override}")


def test_an_app_directory_gives_the_same_run_from_python(
    call: Call, app: Path, app_arguments: list[str], tmp_path: Path
) -> None:
    call(*app_arguments, "+run_config.num-server-rounds=2", "+run_config.client.step=3")
    summary = summary_of(tmp_path / "out")
    again = fl.simulate_app(
        app,
        uniform(10, seed=0),
        run_config={"num-server-rounds": 2, "client": {"step": 3}},
        executor="serial",
        progress=False,
    )
    for digest in ("trace_sha256", "model_sha256"):
        assert again.summary[digest] == summary[digest]
    assert again.arrays is not None
    assert again.arrays["w"].numpy()[0] == 2 * 0.5 * 3  # of which both apps must know


def test_what_is_wrong_with_an_app_directory_is_told_from_python_as_well(
    app: Path, tmp_path: Path
) -> None:
    fleet = uniform(10, seed=0)
    with pytest.raises(fl.ConfigError, match=r"run_config.lrr is no key .* did you mean 'lr'"):
        fl.simulate_app(app, fleet, run_config={"lrr": 1})
    with pytest.raises(fl.ConfigError, match=r"app=.*nowhere.pyproject.toml does not exist"):
        fl.simulate_app(tmp_path / "nowhere", fleet)
    (module,) = app.glob("*/client_app.py")
    module.write_text("import no_such_package")
    with pytest.raises(fl.ConfigError, match="'no_such_package', which is not installed"):
        fl.simulate_app(app, fleet, executor="serial", progress=False)


def test_an_app_with_the_modules_of_another_is_not_taken_for_it(app: Path, tmp_path: Path) -> None:
    other = shutil.copytree(app, tmp_path / "other")
    fleet = uniform(10, seed=0)
    fl.simulate_app(app, fleet, executor="serial", progress=False)
    with pytest.raises(fl.ConfigError, match=r"already imported another module .*tiny_"):
        fl.simulate_app(other, fleet, executor="serial", progress=False)


def test_an_app_that_sets_up_logging_is_heard_once_and_so_are_we(
    call: Call,
    capsys: pytest.CaptureFixture[str],
    app: Path,
    app_arguments: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    (server,) = app.glob("*/server_app.py")
    server.write_text(
        "import logging, time\nlogging.basicConfig(level=logging.INFO)\n"
        + server.read_text().replace(
            "    config = context.run_config\n",
            "    config = context.run_config\n"
            "    logging.getLogger('mine').info(time.strftime('it is %Y'))\n",
        )
    )
    call(*app_arguments)
    error = capsys.readouterr().err
    log = (tmp_path / "out" / "fl.log").read_text()
    for said in ("INFO:mine:it is 2025", "fl: WARNING: the ServerApp asks for the date"):
        assert error.count(said) == log.count(said) == 1
    assert error.count("asks for the date") == log.count("asks for the date") == 1


def test_what_a_command_without_overrides_raises_is_what_is_said(monkeypatch, capsys):
    def broken(arguments):
        raise ModuleNotFoundError("No module named 'matplotlib'")

    monkeypatch.setattr("fl.reports.report.main", broken)
    monkeypatch.setattr(sys, "argv", ["fl", "report", "multirun"])
    with pytest.raises(SystemExit):
        fl.cli.main()
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == "fl: ModuleNotFoundError: No module named 'matplotlib'"


def test_fail_fast_shows_a_clients_traceback_line_by_line(
    call: Call, capsys: pytest.CaptureFixture[str], app: Path, app_arguments: list[str]
) -> None:
    (client,) = app.glob("*/client_app.py")
    client.write_text(client.read_text() + "\napp._registered_funcs['train.default'] = None\n")
    with pytest.raises(SystemExit):
        call(*app_arguments, "fail_fast=true")
    lines = capsys.readouterr().err.splitlines()
    assert "Traceback (most recent call last):" in lines
    assert lines[-2] == "TypeError: 'NoneType' object is not callable"
    assert lines[-1].startswith("fl: ClientApp failed on client ")
    assert ": TypeError: 'NoneType' object is not callable (what it recorded is in " in lines[-1]


@pytest.mark.parametrize(
    ("fail", "status", "code", "says"),
    [
        ("raise", "failed", 1, "fl: the run failed: LookupError: no such model (what it recorded"),
        ("exit", "failed", 1, "fl: the run failed: SystemExit: 0"),
        ("interrupt", "interrupted", 130, "fl: interrupted"),
        ("signal +run_config.name=SIGINT", "interrupted", 130, "fl: interrupted by SIGINT"),
        ("signal +run_config.name=SIGTERM", "interrupted", 143, "fl: interrupted by SIGTERM"),
        ("signal +run_config.name=SIGHUP", "interrupted", 129, "fl: interrupted by SIGHUP"),
    ],
)
def test_run_that_did_not_end_well_has_a_status_and_its_files(
    call: Call,
    capsys: pytest.CaptureFixture[str],
    app_arguments: list[str],
    tmp_path: Path,
    fail: str,
    status: str,
    code: int,
    says: str,
) -> None:
    with pytest.raises(SystemExit) as stopped:
        call(*app_arguments, *f"+run_config.fail={fail}".split())
    assert stopped.value.code == code
    error = capsys.readouterr().err
    assert says in error
    # Of an exception in the app, the author sees where; of Hydra, nothing.
    assert ("server_app.py" in error) == (status == "failed")
    assert "hydra" not in error.lower()
    summary = summary_of(tmp_path / "out")
    assert summary["status"] == status
    assert summary["totals"]["client_updates"] == 10


def test_second_signal_ends_the_process_at_once(
    call: Call, app_arguments: list[str], tmp_path: Path
) -> None:
    child = os.fork()
    if child == 0:
        try:
            sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
            call(*app_arguments, "+run_config.fail=two signals")
        finally:
            os._exit(1)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGTERM
    assert not (tmp_path / "out" / "summary.json").exists()


def test_ignored_signal_stays_ignored(call: Call, app_arguments: list[str], tmp_path: Path) -> None:
    """As `nohup` has it."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        call(*app_arguments, "+run_config.fail=signal", "+run_config.name=SIGHUP")
    finally:
        signal.signal(signal.SIGHUP, before)
    assert summary_of(tmp_path / "out")["status"] == "completed"


def test_sweep_whose_ray_does_not_start_has_failed_jobs_and_runs_the_others(
    call: Call,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    recwarn: pytest.WarningsRecorder,
    tmp_path: Path,
) -> None:
    def failing(address: str, cpus: int | None) -> None:
        raise RuntimeError("on purpose")

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("fl.execution.cluster._init", failing)
    with pytest.raises(SystemExit) as stopped:
        call(*SWEEP, "executor=ray,serial", f"hydra.sweep.dir={tmp_path}")
    assert stopped.value.code == 1
    told = capsys.readouterr().err
    assert "1 of 2 jobs failed" in told
    assert told.splitlines()[-1].startswith("  job 0: Ray does not start on this machine, in 2 ")
    assert told.splitlines()[-1].endswith("executor=serial")
    assert "Traceback" not in told
    assert not [warning for warning in recwarn if "Callback" in str(warning.message)]
    statuses = [summary_of(path.parent)["status"] for path in tmp_path.glob("*/summary.json")]
    assert sorted(statuses) == ["completed", "failed"]
