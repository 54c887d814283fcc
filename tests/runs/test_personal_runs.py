"""What each client would use, in whole runs: a measurement that leaves no trace."""

from __future__ import annotations

from typing import Any

import pytest
from hydra import compose, initialize_config_module

from fl.errors import ConfigError
from fl.runs.build import prepare
from fl.runs.run import run_to_end

SMALL = ["data=digits", "model=mlp", "model.hidden=[8]", "executor=serial", "num_clients=8"]
SMALL += ["partition=pathological", "partition.held_out=0.2", "progress=false", "target=null"]
SMALL += ["num_rounds=3", "checkpoint=off", "views=false"]

# Clients that are late, away and failing: what they remember is not what the server knows.
HARSH = ["fleet/availability=exponential", "fleet.availability.mean_on_s=0.3"]
HARSH += ["fleet.availability.mean_off_s=0.1", "fleet.faults.dropout=0.1", "fleet.faults.crash=0.1"]


def composed(*overrides: str) -> Any:
    with initialize_config_module("fl.conf", version_base=None):
        return compose("config", [*SMALL, *overrides])


def ran(*overrides: str) -> Any:
    return run_to_end(composed(*overrides))


def test_a_run_is_what_it_is_whoever_looks_at_its_clients():
    overrides = ["strategy=fedbuff", "client/correction=ditto", "num_rounds=5", *HARSH]
    alone = ran(*overrides)
    seen = ran(*overrides, "personal.every=2", "personal.local=true", "personal.fine_tune.steps=2")
    for key in ("trace_sha256", "model_sha256", "totals", "participation"):
        before, after = alone.summary[key], seen.summary[key]
        if key == "totals":
            before, after = ({**totals, "wall_s": 0} for totals in (before, after))
        assert before == after
    rounds = [row["round"] for row in seen.history if "personal_accuracy" in row]
    assert rounds == [0, 2, 4, 5]
    first, *_, last = seen.history
    assert last["personal_clients"] == 8
    assert first["global_loss"] != last["global_loss"] != last["personal_loss"]
    assert last["personal_accuracy"] > first["personal_accuracy"]


def test_what_a_client_keeps_of_its_part_is_none_of_the_whole_model_that_it_evaluates():
    overrides = ["strategy=heterofl", "client=momentum"]
    alone = ran(*overrides)
    seen = ran(*overrides, "personal.every=1", "personal.local=true")
    assert seen.summary["model_sha256"] == alone.summary["model_sha256"]
    assert seen.history[-1]["local_loss"] != seen.history[-1]["global_loss"]


def test_who_has_no_model_of_its_own_would_use_the_servers():
    (*_, last) = ran("personal.every=3").history
    for name in ("loss", "accuracy", "accuracy_weighted", "jain"):
        assert last[f"personal_{name}"] == last[f"global_{name}"]
    assert 0 <= last["global_accuracy_worst_decile"] <= last["global_accuracy"]


def test_nodes_use_their_own_models_and_the_global_one_is_their_mean():
    (*_, last) = ran("strategy=dpsgd", "personal.every=3").history
    assert last["personal_loss"] != last["global_loss"]
    assert last["personal_clients"] == 8


def test_who_attacks_and_who_has_nothing_does_not_count():
    attack = ["attack=sign_flip", "num_byzantine=3", "aggregator=median"]
    (*_, last) = ran(*attack, "personal.every=3").history
    assert (last["personal_clients"], last["personal_left_out"]) == (5, 0)
    few = ["partition=dirichlet", "partition.alpha=0.01", "partition.min_partition_size=0"]
    few += ["num_clients=40", "personal.every=3"]
    (*_, last) = ran(*few).history
    assert last["personal_left_out"] > 0
    assert last["personal_clients"] + last["personal_left_out"] == 40


@pytest.mark.parametrize(
    ("overrides", "keys"),
    [
        (["personal.every=0"], ["personal.every is 0"]),
        (["personal.every=1", "personal.clients=0"], ["personal.clients is 0"]),
        (["personal.every=1", "personal.rows=some"], ["personal.rows is 'some'"]),
        (["personal.every=1", "partition.held_out=0"], ["partition.held_out", "evaluate_on=train"]),
        (["partition.held_out=1.0"], ["partition.held_out is 1.0"]),
        (
            ["personal.every=1", "personal.fine_tune.steps=1", "personal.fine_tune.epochs=1"],
            ["personal.fine_tune.steps is 1"],
        ),
        (
            ["personal.every=1", "personal.fine_tune.steps=1", "personal.fine_tune.lr=0"],
            ["personal.fine_tune.lr is 0"],
        ),
        (
            ["personal.every=1", "strategy=scaffold", "personal.local=true"],
            ["personal.local is true", "'c'"],
        ),
        (["personal.every=1", "strategy=fedast"], ["personal.every is 1", "tasks"]),
        (
            ["personal.every=1", "strategy.evaluate_model=own"],
            ["strategy.evaluate_model is 'own'"],
        ),
    ],
)
def test_what_cannot_be_is_refused_with_its_key(overrides, keys):
    if "strategy=fedast" in overrides:
        overrides = [*overrides, "~partition.held_out"]
    with pytest.raises(ConfigError) as refused:
        prepare(composed(*overrides))
    for key in keys:
        assert key in str(refused.value)


CDFL = ["strategy=cdfl", "strategy.rule.num_clusters=1"]


def contacts(*overrides):
    first, *_, last = ran(*CDFL, *overrides, "personal.every=3", "personal.contacts=true").history
    keys = ("contact_before_accuracy", "contact_after_accuracy")
    assert keys[0] not in first
    return first, *(last[key] for key in keys)


def test_who_alone_makes_the_servers_model_is_sent_what_it_came_with():
    _, before, after = contacts("strategy.concurrency=1")
    assert before == after


def test_a_server_that_hardly_changes_sends_everybody_the_first_model():
    first, before, after = contacts("strategy.rule.alpha_0=1e-6")
    assert first["global_accuracy_worst_decile"] <= after <= first["global_accuracy_best_decile"]
    assert before > after


def test_contacts_are_of_servers_that_clients_contact():
    with pytest.raises(ConfigError, match=r"personal\.contacts is true"):
        prepare(composed("personal.every=3", "personal.contacts=true"))
