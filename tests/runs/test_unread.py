"""What is set is read: of every strategy and every member of every group, of keys, of sweeps."""

from __future__ import annotations

from contextlib import suppress
from functools import lru_cache
from pathlib import Path

import pytest
from every_strategy import MODELS, STAGED, mostly_slow
from hydra import compose, initialize_config_module
from omegaconf import DictConfig, OmegaConf, open_dict

import fl
from fl.cli import main
from fl.errors import ConfigError
from fl.runs import unread
from fl.runs.build import build
from fl.runs.run import run_experiment
from fl.runs.unread import Unread, readers_of, unread_groups

CONF = Path(fl.__file__).parent / "conf"
STRATEGIES = sorted(path.stem for path in (CONF / "strategy").glob("[!_]*.yaml"))
GROUPS = {  # key of the root to the folder of its members
    name: name
    for name in (
        *("adapter", "aggregator", "allreduce", "attack", "checkpoint", "client", "compressor"),
        *("battery", "data", "executor", "feedback", "fleet", "hierarchy", "model", "network"),
        *("partition", "power", "preaggregation", "runtime", "tasks", "topology"),
    )
} | {"downlink": "compressor", "then": "compressor"}


def composed(*overrides: str) -> DictConfig:
    with initialize_config_module("fl.conf", version_base=None):
        return compose("config", list(overrides))


@lru_cache
def members(key: str) -> dict[str, DictConfig]:
    """Returns what each member itself puts under a key of the root."""
    paths = sorted((CONF / GROUPS[key]).glob("[!_]*.yaml"))
    found = {path.stem: OmegaConf.load(path) for path in paths}
    for member in found.values():
        member.pop("defaults", None)
    return found


MADE = (
    *("strategy", "attack", "compressor", "then", "feedback", "downlink", "fleet", "executor"),
    *("battery", "checkpoint", "hierarchy", "network", "power", "runtime"),
)


QUICK = ("adpsgd", "demo", "diloco", "fedavg", "fedbuff", "fedast")  # of drivers with other groups


@pytest.mark.parametrize("strategy", mostly_slow(STRATEGIES, QUICK))
def test_member_is_refused_if_and_only_if_nothing_that_is_made_depends_on_it(strategy, monkeypatch):
    monkeypatch.setenv("FL_DATA_DIR", "nowhere")
    config = composed(f"strategy={strategy}")
    several = bool(config.get("tasks"))
    of_one = {"adapter", "client", "data", "model", "partition"}
    made = {*MADE, "tasks"} if several else {*MADE, "tasks", *of_one}
    with open_dict(config):
        for key in GROUPS:
            kept = config.get(key)
            config[key] = None
            # What the strategy is made of; the other parts refer to keys of the root alone.
            without = None if key in made else OmegaConf.to_container(config.strategy, resolve=True)
            there = list(members(key).items())
            for name, member in there[:1] if key in made else there:  # read, whichever it is
                if key == "tasks" and not several:
                    break  # would take the place of other groups
                config[key] = member
                is_read = (
                    key in made or OmegaConf.to_container(config.strategy, resolve=True) != without
                )
                assert (Unread(config).why(key) is None) == is_read, f"{key}={name}"
            if key in (
                "aggregator",
                "allreduce",
                "topology",
            ):  # of which a chosen member is set, by whomever
                assert any(m.startswith(f"{key} ") for m in unread_groups(config)) != is_read
            config[key] = kept


def test_every_key_of_the_root_is_asked_for_by_a_kind_of_run_or_referred_to():
    asked_for = {*unread.ALWAYS, *unread.OF_APPS, *unread.OF_OURS, *unread.OF_A_TASK}
    root = OmegaConf.load(CONF / "config.yaml")
    keys = {str(key) for key in root if key not in ("defaults", "hydra")}
    keys |= {*GROUPS}
    assert {key for key in keys - asked_for if not readers_of(key)} == set()
    assert asked_for <= keys | {"strategy"}


TINY = [
    "executor=serial",
    "progress=false",
    "num_clients=12",
    "num_rounds=2",
    "model=logistic",
    "partition=iid",
    "fleet=uniform",
    "views=false",
    "target=null",
]


def tiny(*overrides: str) -> list[str]:
    several = any(o in ("strategy=fedast", "strategy=sync_st") for o in overrides)
    return [o for o in TINY if not (several and o.startswith(("model", "partition")))] + list(
        overrides
    )


@pytest.mark.parametrize("strategy", STAGED)
def test_machines_of_stages_refuse_what_messages_tell_who_trains_a_model(strategy):
    own = [f"strategy={strategy}", *MODELS[strategy]]
    with pytest.raises(ConfigError, match=r"train_config\.batch-size is 8, which machines"):
        build(composed(*tiny(*own, "+train_config.batch-size=8")))
    ignored = build(composed(*tiny(*own))).ignored
    assert {"client.local_steps", "client.drop_last", "client.rule.clip_norm"} <= ignored.keys()


# What is set, with what makes it of no effect; and what counts instead, in the message.
IGNORED = {
    "strategy.rule.window=3": (
        ["strategy=fedast"],
        "only strategy.rule.allocation=dynamic reads it",
    ),
    "strategy.f=1": (["strategy=fedbuff"], "Mean has no number of Byzantine clients"),
    "aggregator.weighted=false": (["strategy=fedbuff"], "updates do not weigh by numbers of ex"),
    "strategy.metric=loss": (["strategy=fedast"], "strategy.targets are values of it, and there"),
    "strategy.rule.drop_stragglers=true": (
        ["strategy=fedprox"],
        "only with strategy.rule.straggler_f",
    ),
    "strategy.rule.pattern=sequential": (
        ["strategy=eager_updates"],
        "and strategy.rule.fragments is 1",
    ),
    "strategy.root_examples=7": (["strategy=fedavg"], "Mean does without an own update"),
    "strategy.min_evaluate_nodes=5": ([], "only with strategy.fraction_evaluate above 0"),
    "aggregator.f=2": (["strategy=fedavg", "aggregator=krum", "strategy.f=1"], "strategy.f co"),
    "aggregator.rule.f=2": (["strategy=fedavg", "aggregator=nnm_krum"], "aggregator.f says w"),
    "topology/weights=lazy": (["strategy=monna", "strategy.rule.f=1"], "the graph of a topology"),
    "topology/weights=lazy_metropolis": (
        ["strategy=dfedavg", "aggregator=median"],
        "takes the graph of a topology",
    ),
    "attack.target=2": (["attack=mimic", "num_byzantine=2"], "only attack.warmup=0 reads it"),
    "attack.attack.z=2": (
        ["attack=alie_optimized", "num_byzantine=2", "strategy=fedavg"],
        "the factor is searched for",
    ),
    "attack.server_lr=2": (
        ["attack=model_replacement", "num_byzantine=2", "attack.boost=3"],
        "attack.boost counts instead",
    ),
    "compressor.gain=0.2": (
        ["compressor=threshold", "compressor.density=null"],
        "without compressor.density the bound is fixed",
    ),
    "fleet.regions=[iowa]": (["fleet=datacenters", "fleet.network=high"], "only fleet.network=geo"),
    "client.correction.clip_first=true": (
        ["client/correction=proximal"],
        "only client.rule.clip_norm clips",
    ),
    "client.correction.mu=0.3": (["strategy=fedprox"], "with FedProx, strategy.rule.mu counts ins"),
    "client.local_epochs=3": (
        ["strategy=favas", "strategy.local_steps=2"],
        "with FAVAS, strategy.local_steps counts inst",
    ),
    "client.rule.lr=0.7": (
        ["strategy=backup_workers"],
        "with BackupWorkers, strategy.rule.eta counts",
    ),
    "client.evaluate_on=train": ([], "FedAvg, as it is configured, does not have clients evaluate"),
    "+train_config.rate=0.7": ([], "clients of this kind do not read it"),
    **{
        f"hierarchy.{name}=0.002": ([f"hierarchy={kind}", "hierarchy.failure=0.0", *more], says)
        for name, kind, more, says in (
            ("detection_s", "edge", [], "none dies, as hierarchy.failure is 0"),
            ("machine.warm_s", "edge", [], "an edge server's aggregator is always there"),
            ("machine.keep_alive_s", "edge", [], "an edge server's aggregator is always there"),
            ("machine.cold_s", "edge", ["hierarchy.machine.warm_s=0.0"], "only with hierarchy.fai"),
            ("smoothing", "lifl", ["hierarchy.planned=false"], "only hierarchy.planned=true"),
            ("machine.copy_s_per_byte", "lifl", [], "only hierarchy.shared_memory=false copies"),
            ("machine.nic_latency_s", "lifl", ["hierarchy.nodes=1"], "as hierarchy.nodes is 1"),
        )
    },
    "checkpoint.trust=true": ([], "it is for the ServerApps of others"),
}


@pytest.mark.parametrize("key", mostly_slow(IGNORED))
def test_argument_that_its_part_does_not_read_is_refused_and_would_change_nothing(
    key, monkeypatch, capsys, tmp_path
):
    beside, says = IGNORED[key]
    if beside[:1] == ["attack=mimic"]:
        beside = [*beside, "strategy.fraction_train=1.0"]
    arguments = [o for o in tiny(*beside) if o.partition("=")[0] != key.partition("=")[0]]
    with monkeypatch.context() as patched:
        patched.setattr("sys.argv", ["fl", *arguments, key, f"hydra.run.dir={tmp_path / 'run'}"])
        patched.setenv("HYDRA_FULL_ERROR", "1")
        with pytest.raises(SystemExit):
            main()
    start = f"fl: {key} has no effect: "
    (message,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith(start)]
    assert says in message
    hashes = []
    monkeypatch.setattr("fl.runs.run.print_results", lambda summary, *_: hashes.append(summary))
    for more in ([], [key]):
        run_experiment(composed(*arguments, *more))
    one, other = hashes
    assert one["model_sha256"] == other["model_sha256"]
    if not key.startswith("+train_config"):  # which is sent, and takes bytes
        assert one["trace_sha256"] == other["trace_sha256"]


def test_sweep_may_say_that_not_all_its_jobs_read_a_key(monkeypatch, capsys, tmp_path):
    def sweep(*arguments: str) -> str:
        quick = [o for o in tiny(*arguments) if o != "target=null"]
        monkeypatch.setattr("sys.argv", ["fl", "-m", *quick, f"hydra.sweep.dir={tmp_path}"])
        monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
        with suppress(SystemExit):
            main()
        return capsys.readouterr().err

    both = ["strategy=fedavg,fedcompass", "client.local_epochs=null", "client.local_steps=2"]
    refused = sweep(*both)
    assert "job 1" in refused
    assert "job 0" not in refused
    assert "say so: may_be_unread=[client.local_steps]" in refused
    assert sweep(*both, "may_be_unread=[client.local_steps,client.local_epochs]") == ""


def test_key_in_a_list_is_read_where_the_list_is():
    key = "compressor.compressor.stages.0.density"
    read = Unread(composed("compressor=ef_topk_int8"))
    assert read.why(key) is None
    assert read.why(key.replace("0.", "7.")) is not None


def test_preset_may_hold_keys_that_only_some_members_read():
    # Only what the command line sets must be read; experiment files are made for sweeps.
    config = composed("+experiment=favas", "strategy=favas", "data=digits", "num_clients=20")
    assert config.client.local_steps == 20  # which favas has as an argument of its own
    build(config)
