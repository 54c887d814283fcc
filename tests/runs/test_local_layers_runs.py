"""Local layers and adapters in whole runs: what they are equal to, and what they cost."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hydra import compose, initialize_config_module

from fl.errors import ConfigError
from fl.runs.build import build, prepare
from fl.runs.run import run_to_end

SMALL = ["executor=serial", "num_clients=4", "num_rounds=2", "partition=iid", "fleet=uniform"]
SMALL += ["strategy.fraction_train=1", "progress=false", "checkpoint=off", "views=false"]


def composed(*overrides: str) -> Any:
    with initialize_config_module("fl.conf", version_base=None):
        return compose("config", [*SMALL, *overrides])


def ran(*overrides: str) -> Any:
    return run_to_end(composed("target=null", *overrides))


def test_what_stays_at_home_costs_no_byte_and_only_the_clients_are_measured():
    """Ten rows of 64 weights and a bias, both ways, less in each of the run's messages."""
    plain, kept = ran("partition.held_out=0.2"), ran("strategy=fedper", "partition=iid")
    head = {f"layers.2.{name}" for name in ("weight", "bias")}
    assert set(plain.arrays) - set(kept.arrays) == head
    numbers = 4 * 2 * 4 * 10 * 65  # clients, rounds, bytes
    for way in ("bytes_down", "bytes_up"):
        saved = plain.summary["totals"][way] - kept.summary["totals"][way]
        assert numbers <= saved < numbers * 1.2  # and the arrays' headers
    first, last = kept.history[0], kept.history[-1]
    assert not {"accuracy", "loss", "global_accuracy"} & {*first, *last}
    assert last["personal_accuracy"] > first["personal_accuracy"]


NAMED = ["client/local_layers=named", "client.local_layers.patterns=['layers.2.*']"]


def test_a_target_without_a_goal_is_refused_with_the_goal_as_the_remedy():
    with pytest.raises(ConfigError, match=r"^target\.metric is 'accuracy'.*goal=personal"):
        prepare(composed(*NAMED))


def test_a_metric_that_only_mixtures_have_is_not_offered_to_who_has_none():
    with pytest.raises(ConfigError, match=r"^target\.metric is 'mixture_error'") as refused:
        prepare(composed(*CLUSTERS, "target.metric=mixture_error"))
    assert "rand_index" in str(refused.value)
    assert str(refused.value).count("mixture_error") == 1


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (["adapter.rank=65"], "adapter.rank is 65"),
        (["adapter.layers=[head]"], "adapter.layers has 'head'"),
        (["adapter.layers=[]"], "adapter.layers is []"),
        (["adapter.base=none.safetensors"], "adapter.base is 'none.safetensors'"),
    ],
)
def test_an_adapter_is_refused_by_its_full_keys(overrides, key):
    with pytest.raises(ConfigError) as refused:
        build(composed("adapter=lora", *overrides))
    assert str(refused.value).startswith(key)


CLUSTERS = ["strategy=ifca", "partition=clusters", "partition.test_size=7"]
DEVICES = ["data=synthetic", "model=logistic", "partition=natural"]


@pytest.mark.parametrize("own", [CLUSTERS, DEVICES], ids=["partition", "data"])
def test_a_goal_takes_the_held_out_examples_that_there_are(own):
    """Of the partition's, and of the data's, the share that a goal sets takes none away."""
    plain, aimed = (build(composed(*own, *goal)) for goal in ([], ["goal=personal"]))
    for part in ("partitions", "test_partitions"):
        sizes = [getattr(run.data, part).sizes for run in (plain, aimed)]
        np.testing.assert_array_equal(*sizes)
    assert "personal.held_out" in aimed.ignored


def test_a_goal_holds_out_examples_where_there_are_none():
    plain, aimed = (build(composed(*goal)) for goal in ([], ["goal=personal"]))
    n, kept = plain.data.partitions.sizes, aimed.data.test_partitions.sizes
    np.testing.assert_array_equal(kept, np.ceil(0.2 * n))
    np.testing.assert_array_equal(aimed.data.partitions.sizes, n - kept)
    assert "personal.held_out" not in aimed.ignored


@pytest.mark.parametrize("metric", ["accuracy", "global_accuracy"])
def test_a_target_that_only_a_whole_model_has_is_refused(metric):
    with pytest.raises(ConfigError, match=rf"^target\.metric is '{metric}'.*personal_accuracy"):
        prepare(composed("strategy=fedper", f"target.metric={metric}"))


def test_a_correction_may_not_come_between_parts_that_train_in_turns():
    with pytest.raises(ConfigError, match=r"^client\.local_layers\.first is 0\.9"):
        build(composed("strategy=fedrep", "client/correction=proximal", "target=null"))


def test_an_adapter_of_full_rank_is_training_of_the_whole_model():
    """PaCA with all columns of both layers, and the biases as they are."""
    full = ["adapter=paca", "adapter.rank=64", "adapter.trained=['*.bias']"]
    plain, adapted = ran("model.hidden=[64]"), ran("model.hidden=[64]", *full)
    for one, other in zip(plain.history, adapted.history, strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-5)
    assert plain.history[-1]["loss"] < plain.history[0]["loss"] - 0.1
    assert set(adapted.arrays) == {f"layers.{i}.{name}" for i in (0, 2) for name in ("D", "bias")}


def test_clients_with_a_frozen_model_train_as_one_program():
    run = ran("adapter=lora", "client.batching=auto")
    assert run.summary["extra"]["batching"]["together"]
    dense = build(composed("target=null"))
    thin = build(composed("target=null", "adapter=lora"))
    assert thin.app.memory_bytes() > 4 * dense.app.home.whole.size  # the base counts
    assert sum(np.prod(a.shape) for a in thin.initial().values()) == 8 * (64 + 64 + 64 + 10)
