"""Every member of every group composes, builds and runs; impossible ones stop with a message."""

from __future__ import annotations

import os
import re
from itertools import cycle
from pathlib import Path

import pytest
from every_strategy import MODELS, STAGED, TIMED
from hydra import compose, initialize_config_module

import fl
from fl.clients import Corrected, TrainingApp
from fl.errors import ConfigError
from fl.runs.build import build
from fl.runs.explaining import explain
from fl.runs.groups import groups, header, members_of, text
from fl.runs.run import run_experiment

CONF = Path(fl.__file__).parent / "conf"
TINY = [
    "executor=serial",
    "progress=false",
    "num_clients=12",
    "num_rounds=2",
    "model=logistic",
    "partition=iid",
    "fleet=uniform",
]
REPLICAS = ("demo", "just_one_byte", "onebit_adam")
FILES = "mnist rotated_mnist cifar10 fedprox_mnist shakespeare serverless trace"
NEEDS_FILES = set(FILES.split())


def members(group):
    return sorted(path.stem for path in (CONF / group).glob("[!_]*.yaml"))


def config_of(*overrides):
    with initialize_config_module("fl.conf", version_base=None):
        return compose("config", [*TINY, *overrides])


def skip_without_files(name):
    if name in NEEDS_FILES and not os.environ.get("FL_DATA_DIR"):
        pytest.skip(f"{name} reads files from FL_DATA_DIR, which is not set")


EVERY = [(group, name) for group, names in groups() for name in names]


@pytest.mark.parametrize(("group", "name"), EVERY, ids=lambda part: part)
def test_every_member_says_how_it_is_used_what_it_is_and_what_its_keys_mean(group, name):
    said = header(group, name)
    assert re.search(rf"[ +]{group}(@\S+)?=(\S+,|\[)?{name}\b", said.command), said.command
    assert len(said.what) > 10, "a paper, or a sentence"
    if group != "experiment":  # whose keys are explained where they are from
        assert not unexplained(text(group, name), explained_before(group, name))


def explained_before(group, name):
    """Keys that are explained in what a member is made of, whose values it may replace."""
    keys = set()
    for entry in dict(members_of(group))[name].get("defaults") or ():
        for key, chosen in [(group, entry)] if isinstance(entry, str) else entry.items():
            if chosen != "_self_" and (key == group or key.endswith("@_here_")):
                of = key.removesuffix("@_here_").lstrip("/")
                for one in [chosen] if isinstance(chosen, str) else chosen:
                    keys |= keys_of(text(of, one)).keys() | explained_before(of, one)
    return keys


def keys_of(yaml):
    """The lines of keys by name, without what Hydra reads itself and what is another key's."""
    found = re.findall(r"(?m)^(?!  - ) *(?:- )?([^\W_][\w-]*): (\S.*)$", yaml)
    return {key: line for key, line in found if not re.fullmatch(r"\$\{\w+\}", line)}


def unexplained(yaml, before):
    return [k for k, line in keys_of(yaml).items() if "# " not in line and k not in before]


@pytest.mark.parametrize("path", [*CONF.glob("_base/**/*.yaml")], ids=lambda path: path.stem)
def test_what_members_are_made_of_explains_its_keys(path):
    yaml = path.read_text(encoding="utf-8")
    assert yaml.startswith("# ")
    assert not unexplained(yaml, set())


SAME_RATE = ("fedavg_m", "qfedavg", "scaffold_m")  # whose server knows the clients' rate
TOLD_AT_TIMES = {  # what some messages say: those to anchors, and those of the first round
    "fedamd": {"local-epochs", "local-steps"},
    "savic": {"local-steps"},
}


@pytest.mark.parametrize("name", members("strategy"))
def test_every_strategy_runs_and_says_what_it_tells_clients_in_place_of_their_own(
    name, monkeypatch
):
    # The server's own models come back to the clients, which must be able to read them.
    chosen = [f"strategy={name}", "target=null", "num_rounds=3", "fail_fast=true"]
    chosen += MODELS.get(name, [])
    trains = name not in (*STAGED, *TIMED)  # whole models
    if trains:
        chosen.append("+train_config.lr=0.05")
        chosen += ["strategy.rule.lr=0.05"] if name in SAME_RATE else []
    config = config_of(*chosen)
    if config.strategy.get("sub_models") or name == "dimat":  # of a model that has parts
        config = config_of(*chosen, "model=mlp")
    if "local_layers" in config.client:  # which need more than one layer, or one that normalises
        config = config_of(*chosen, f"model={'resnet8' if name == 'fedbn' else 'mlp'}")
    if config.client.rule._target_ == "fl.clients.CodedGradient":
        config = config_of(*chosen, "partition=coded")
    if "fraction_train" in config.strategy:
        # Bulyan needs n >= 4 f + 3 replies; with all clients and no faults every round has 12.
        config.strategy.fraction_train = 1.0
    experiment = build(config)
    said = []
    plan = TrainingApp.plan

    def noted(app, payload, kind, *rest):
        if kind.startswith("train"):
            said.append(dict(payload.content["config"]))
        return plan(app, payload, kind, *rest)

    monkeypatch.setattr(TrainingApp, "plan", noted)
    assert run_experiment(config, prepared=experiment) is None
    if trains:
        assert said
        app, told = experiment.app, experiment.strategy.told()
        expected = {key for key in (*told, "lr") if app.replaced_by(key)}
        for one in said:
            honoured = {key for key in one if app.replaced_by(key)}
            assert expected <= honoured <= expected | TOLD_AT_TIMES.get(name, set())


@pytest.mark.parametrize("name", members("topology"))
def test_every_topology_runs_without_a_server(name):
    # 12 nodes are no power of two, which a hypercube has.
    nodes = ["num_clients=8"] if name == "hypercube" else []
    # Matchings have weights by which push-sum cannot divide.
    strategy = f"strategy={'dfedavg' if name == 'matcha' else 'sgp'}"
    assert run_experiment(config_of(strategy, f"topology={name}", *nodes, "target=null")) is None


@pytest.mark.parametrize("name", members("allreduce"))
def test_every_collective_brings_islands_together(name):
    few = ["num_clients=3", "num_rounds=1", "strategy.rule.inner_steps=1", "target=null"]
    fleet = ["fleet=mobile", "fleet/availability=exponential", "strategy.on_failure=retry"]
    assert run_experiment(config_of("strategy=diloco", f"allreduce={name}", *few, *fleet)) is None


def test_byzantine_nodes_attack_a_network_without_a_server():
    few = ["num_byzantine=2"]
    assert 0 <= run_experiment(config_of("strategy=monna", "attack=ipm_optimized", *few)) <= 1
    robust = ["topology=complete", "aggregator=nnm_krum", "strategy.f=2", "compressor=ef_topk"]
    chosen = ["strategy=dfedavg", "attack=ipm_optimized", *robust]
    assert 0 <= run_experiment(config_of(*chosen, *few)) <= 1
    pairs = ["strategy=adpsgd", "attack=ipm", "compressor=int8"]
    assert 0 <= run_experiment(config_of(*pairs, *few)) <= 1
    poisoned = ["strategy=dpsgd", "attack=label_flip", "num_byzantine=2"]
    assert 0 <= run_experiment(config_of(*poisoned)) <= 1


@pytest.mark.parametrize("name", members("client"))
def test_every_client_rule_runs(name):
    strategy = {
        "gradient": ["strategy=onebit_adam"],
        "coded_gradient": ["strategy=gradient_coding", "partition=coded"],
    }.get(name, [])
    if name == "untrained":  # of which nothing is evaluated
        assert run_experiment(config_of("client=untrained")) is None
        return
    assert 0 <= run_experiment(config_of(*strategy, f"client={name}")) <= 1


OPTIMIZERS = {*members("client")} - {
    *("coded_gradient", "conservative", "gradient", "per_fedavg", "pfedme"),
}
CORRECTING = ["fedprox", "fedasync", "scaffold", "scaffold_m", "feddyn"]


@pytest.mark.parametrize(("strategy", "name"), [*zip(cycle(CORRECTING), sorted(OPTIMIZERS))])
def test_every_local_optimizer_takes_the_correction_that_a_strategy_chooses(strategy, name):
    experiment = build(config_of(f"strategy={strategy}", f"client={name}"))
    assert isinstance(experiment.app.rule, Corrected)


@pytest.mark.parametrize("name", members("network"))
def test_every_network_runs(name):
    networks = Path(__file__).parents[1] / "examples" / "networks"
    files = {
        "direct": ["fleet.server_down_bps=1e9"],  # of which background traffic takes its share
        "file": [f"network.path={networks}/campus.yaml"],
        "simgrid": [f"network.path={networks}/platform.xml", "network.server_host=server"],
    }
    more = ["network.background.load=0.5", "network.tcp.initial_window_bytes=1460"]
    assert run_experiment(config_of(f"network={name}", *files.get(name, []), *more)) >= 0


@pytest.mark.parametrize("name", members("hierarchy"))
def test_every_hierarchy_runs(name):
    assert run_experiment(config_of(f"hierarchy={name}")) >= 0


@pytest.mark.parametrize("name", members("fleet"))
def test_every_fleet_runs(name):
    skip_without_files(name)
    text = (CONF / "fleet" / f"{name}.yaml").read_text(encoding="utf-8")
    more = ["fleet/availability=always"] if "availability:" in text else []
    assert 0 <= run_experiment(config_of(f"fleet={name}", *more)) <= 1


OWN_DATA = ("arrays", "huggingface", "image_folder", "table")  # tests/data/test_own_data.py


@pytest.mark.parametrize("name", [n for n in members("data") if n not in OWN_DATA])
def test_every_data_set_builds(name):
    skip_without_files(name)
    images = ("digits", "mnist", "cifar10", "rotated_digits", "rotated_mnist")
    natural = ["partition=natural"] if name not in images else []
    model = ["model=char_lstm"] if name in ("shakespeare", "stdlib") else []
    if name in ("quadratic_game", "robust_least_squares"):
        model = [f"model={name}", "target=null"]
    data = build(config_of(f"data={name}", *natural, *model)).data
    assert data.num_partitions == 12


@pytest.mark.parametrize("name", [n for n in members("partition") if n != "natural"])
def test_every_partition_builds(name):
    needed = {"clusters": ["data=rotated_digits"], "coded": ["strategy=gradient_coding"]}
    assert build(config_of(f"partition={name}", *needed.get(name, ()))).data.num_partitions == 12


@pytest.mark.parametrize(
    "more",
    [
        ["compressor=e3m0"],
        ["compressor=ef_topk_int8"],
        ["attack=label_flip", "num_byzantine=2"],
        ["attack=ipm_optimized", "num_byzantine=2", "aggregator=nnm_krum", "strategy.f=2"],
    ],
)
def test_outer_steps_take_compressors_attacks_and_aggregators(more):
    config = config_of("strategy=diloco", "strategy.rule.inner_steps=3", *more)
    assert 0 <= run_experiment(config) <= 1


def test_poisoned_data_may_be_trained_on_with_a_compressor():
    config = config_of("attack=label_flip", "num_byzantine=2", "compressor=topk")
    assert 0 <= run_experiment(config) <= 1


@pytest.mark.parametrize("name", members("runtime"))
def test_every_runtime_takes_the_time_of_a_run(name):
    assert 0 <= run_experiment(config_of(f"runtime={name}")) <= 1


@pytest.mark.parametrize("name", members("executor"))
def test_every_executor_builds_without_starting_anything(name):
    build(config_of(f"executor={name}"))


@pytest.mark.parametrize("name", [p.stem for p in sorted((CONF / "experiment").glob("*.yaml"))])
def test_every_experiment_composes_and_builds(name):
    with initialize_config_module("fl.conf", version_base=None):
        config = compose("config", [f"+experiment={name}"], return_hydra_config=True)
    skip_without_files(config.hydra.runtime.choices.data)
    build(config)


def test_the_defaults_compose_and_build():
    with initialize_config_module("fl.conf", version_base=None):
        build(compose("config"))


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["num_clients=0"], "num_clients is 0; it must be a whole number, at least 1"),
        (["num_rounds=-1"], "num_rounds is -1"),
        (["evaluate_every=0"], "evaluate_every is 0"),
        (["round_timeout_s=0"], "round_timeout_s is 0"),
        (["strategy.min_available_nodes=13"], "min_available_nodes is 13, but there are 12"),
        (["strategy.min_available_nodes=99"], "min_available_nodes is 99"),
        (["strategy=fedasync", "aggregator=krum"], "choose one that does (strategy: "),
        (["client.rule.lr=-1"], "lr is -1; it must be finite and above 0"),
        (["client.local_steps=5"], "local_epochs is 1 and local_steps is 5; set one of them"),
        (["client.batch_size=0"], "batch_size is 0; it must be a whole number, at least 1"),
        (["partition=dirichlet", "partition.alpha=-1"], "alpha"),
        (["num_clients=5000"], "5000"),
        (["fleet.down_bps=0"], "down_bps of client 0"),
        (["fleet.flops=nan"], "flops"),
        (["executor.max_batch=0"], "executor.max_batch is 0; it must be"),
        (["executor=ray", "executor.num_actors=0"], "executor.num_actors is 0"),
        (["strategy=fedprox", "strategy.rule.mu=-1"], "mu is -1"),
        (["data=synthetic", "data.alpha=-1", "partition=natural"], "alpha"),
        (["compressor=topk", "compressor.density=2"], "density"),
        (["compressor@downlink=topk"], "compressor@downlink=ef21"),
        (["feedback=ef"], "compressor is null"),
        (["compressor=ef_topk", "feedback=ef"], "compressor is ErrorFeedback"),
        (["compressor=int8", "compressor@then=topk"], "compressor is Uniform"),
        (["compressor=topk", "feedback=ef", "feedback.decay=3"], "feedback.decay is 3"),
        (["compressor=sign", "feedback=diana"], "DIANA needs an unbiased"),
        (["strategy=fedasync", "preaggregation=nnm"], "does not read preaggregation"),
        (["strategy=demo", "compressor=topk"], "compresses what there is to send itself"),
        (
            ["strategy=onebit_adam", "compressor@downlink=ef21"],
            "may carry the gradients",
        ),
        (["attack=ipm"], "num_byzantine is 0 of 12 clients; with an attack it must be"),
        (["num_byzantine=2"], "num_byzantine is 2, but there is no attack"),
        (["attack=label_flip", "num_byzantine=2", "partition.num_partitions=6"], "share 6"),
        (["attack=label_flip", "num_byzantine=2", "attack.num_classes=9"], "has 10 classes"),
        (["attack=gauss", "num_byzantine=2", "attack.sigma=-1"], "sigma=-1"),
        (["strategy=fedavg", "aggregator=fltrust", "strategy.root_examples=0"], "is 0, of"),
        (["strategy=fedavg", "aggregator=krum", "strategy.f=-1"], "f=-1"),
        (["client/correction=control_variates"], "client/correction is control_variates"),
        (["strategy=scaffold", "~client/correction"], "client.rule is Sgd"),
        (["strategy=scaffold", "client=gradient"], "client.rule is Gradient"),
        (["client=gradient"], "client.rule is Gradient"),
        (["strategy=gradient_tracking", "client=adamw"], "client.rule is AdamW"),
        (["strategy=dpsgd", "compressor=sign", "compressor.scale=none"], "compressor is Sign"),
        (["strategy=choco", "compressor=demo"], "decay is 0.999"),
        (["strategy=dpsgd", "compressor@downlink=ef21"], "downlink is EF21"),
        (["strategy=sgp", "aggregator=median"], "aggregator is Median"),
        (["strategy=dpsgd", "aggregator=fltrust"], "aggregator is FLTrust"),
        (["strategy=dpsgd", "aggregator=krum", "strategy.f=1"], "f=1"),
        (["strategy=dpsgd", "strategy.gamma=1.5"], "gamma is 1.5"),
        (["strategy=monna", "aggregator=median"], "MoNNA does not read aggregator"),
        (["strategy=dfedavg", "topology=directed_erdos_renyi"], "use strategy=sgp"),
        (["strategy=d2", "strategy.gamma=null"], "strategy.gamma is null"),
        (["strategy=extra", "topology=base"], "topology is BaseGraph"),
        (["strategy=extra", "aggregator=median"], "aggregator is Median"),
        (["strategy=adpsgd", "topology=exponential"], "an undirected graph that stays"),
        (["strategy=monna", "topology=ring", "strategy.rule.f=1"], "f=1"),
        (["topology=ring"], "as the strategy FedAvg does not read topology"),
        (["strategy=onebit_adam", "client=pfedme"], "client.rule is MoreauEnvelope"),
        (["strategy=demo", "client=sam", "client.rule.momentum=0.9"], "use client=momentum"),
        (["strategy=demo", "client/correction=proximal"], "client.correction is Proximal"),
        (["strategy=diloco", "client=gradient"], "client.rule is Gradient"),
        (["strategy=data_parallel", "client=microadam"], "client.rule is MicroAdam"),
        (
            ["strategy=diloco", "client=adamw", "client.rule.keep_moments=false"],
            "client.rule is AdamW",
        ),
        (
            ["strategy=diloco", "client=microadam", "client.rule.keep_state=false"],
            "client.rule is MicroAdam",
        ),
        (["strategy=diloco", "client=sgd", "client.rule.momentum=0.9"], "use client=momentum"),
        (["strategy=diloco", "compressor@downlink=bf16"], "leave downlink out"),
        (["strategy=diloco", "aggregator=fltrust"], "aggregator is FLTrust"),
        (
            ["strategy=streaming_diloco", "strategy.rule.overlap=30"],
            "must be below inner_steps, 30",
        ),
        (["strategy=streaming_diloco", "strategy.rule.fragments=5"], "the model has 0 blocks"),
        (["strategy=streaming_diloco", "strategy.rule.fragments=7"], "7 fragments do not divide"),
        (["strategy=diloco", "strategy.rule.optimizer.momentum=1"], "optimizer.momentum is 1"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_what_cannot_be_stops_before_training_and_says_why(overrides, words):
    with pytest.raises(Exception) as caught:  # noqa: PT011  (whatever says what is wrong)
        build(config_of(*overrides))
    assert words in (explain(caught.value) or "")


def test_a_model_too_large_for_a_device_names_device_need_and_remedy():
    config = config_of("fleet.memory_bytes=1000")
    with pytest.raises(ConfigError, match="memory"):
        run_experiment(config)
