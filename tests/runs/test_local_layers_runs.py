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
NONE = ["client/local_layers=named", "client.local_layers.patterns=[]"]


def composed(*overrides: str) -> Any:
    with initialize_config_module("fl.conf", version_base=None):
        return compose("config", [*SMALL, *overrides])


def ran(*overrides: str) -> Any:
    return run_to_end(composed("target=null", *overrides))


def test_without_local_layers_it_is_fedavg_to_the_last_bit():
    plain, none = ran(), ran(*NONE)
    for key in ("trace_sha256", "model_sha256"):
        assert none.summary[key] == plain.summary[key]


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
