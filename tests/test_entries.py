"""What every part does with entries of a model that are no float32 parameters.

The table of docs/models.md is what is tested here: a model that has all kinds is trained by every
strategy, with and without compressed links.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from all_kinds import AllKinds
from every_strategy import (
    AVERAGING,
    CLIENTS,
    EVENTS,
    GRADIENTS,
    OUTER,
    POLLING,
    ROUNDED,
    ROUNDS,
    SERVERLESS,
    configured,
    mostly_slow,
    ran,
)
from flwr.app import Array, ArrayRecord, RecordDict
from flwr.serverapp.strategy import DifferentialPrivacyServerSideFixedClipping, FedAvg

from fl import simulate
from fl.attacks import IPM
from fl.errors import ConfigError
from fl.flower.carried import carried, median_carried
from fl.runs.build import build
from fl.runs.journal.encoding import decode, encode
from fl.runs.run import serve
from fl.strategies import Exchange, driver_of
from fl.vectors.layout import Layout

KINDS = ["model._target_=all_kinds.AllKinds", "~model.hidden", "~model.dropout"]


def trained(strategy, *overrides, model="AllKinds"):
    """Returns an experiment and its run, after checking that nothing was refused in it."""
    kinds = [f"model._target_=all_kinds.{model}", "~model.hidden", "~model.dropout"]
    experiment, run = ran(strategy, *kinds, *overrides)
    assert run.summary["status"] == "completed"
    assert run.summary["faults"].keys() <= {"forged"}
    assert len(run.history) == ROUNDS + 1
    return experiment, run


def values(arrays):
    return {name: array.numpy() for name, array in arrays.items()}


def check(experiment, run, *, tied=1e-6, counted=True):
    """Checks what holds for every strategy.

    Args:
        experiment: what was run.
        run: what came out.
        tied: relative difference of entries that are one parameter; None does not compare.
        counted: whether most clients of a round train, so that the median of their counters grows.
    """
    first, last = values(experiment.initial()), values(run.arrays)
    assert list(last) == list(first)
    for name, value in first.items():
        assert last[name].shape == value.shape
        assert np.isfinite(last[name]).all()
    for name in ("hidden.weight", "head.weight", "norm.running_var", "narrow", "scale"):
        assert (last[name] != first[name]).any(), f"{name} has not moved"
    assert not [name for name in last if name.startswith("frozen")]  # clients have them
    np.testing.assert_array_equal(last["mask"], first["mask"])
    assert last["mask"].dtype == bool
    assert (last["seen"].dtype, last["norm.num_batches_tracked"].dtype) == ("int32", "int64")
    if counted:
        assert last["seen"] > 0
        assert last["norm.num_batches_tracked"] > 0
    if tied is not None:
        np.testing.assert_allclose(last["again.weight"], last["hidden.weight"], rtol=tied)
        np.testing.assert_allclose(last["twice.bias"], last["head.bias"], rtol=tied)
    losses = [row["loss"] for row in run.history]
    assert np.isfinite(losses).all()
    assert losses[-1] < max(losses[:2])  # FAVAS has no time for more than a few steps


ONE = [f"strategy.{key}=1" for key in ("min_train_nodes", "min_available_nodes")]
ONE.append("client.rule.lr=0.1")

ANCHORS = "fedamd"  # nearly all of whose clients send a gradient, and train nothing

slow = pytest.mark.slow
QUICK = {"fedavg", "qfedavg", "fedadam", "fedbuff", "quafl", "dpsgd"}
SERVED = [*AVERAGING, *ROUNDED, *EVENTS, *POLLING]
ALL = [*SERVED, *SERVERLESS]


@pytest.mark.parametrize("strategy", mostly_slow(ALL, QUICK))
def test_a_model_of_all_kinds_learns_with_every_strategy(strategy):
    overrides = ["client.rule.lr=0.05"] if strategy == "fedasync" else []
    experiment, run = trained(strategy, *overrides)
    exact = strategy in AVERAGING and not strategy.startswith("fedhyper")
    # Sums of equal numbers may differ in their last bits, and FedHyper's rates are such sums.
    check(experiment, run, tied=0 if exact else 1e-6, counted=strategy != ANCHORS)


TOPK = "ef_topk compressor.compressor.density=0.3"


@pytest.mark.parametrize("compressor", [TOPK, "int8", "sign"])
@pytest.mark.parametrize(
    "strategy", mostly_slow([*AVERAGING, *ROUNDED, *EVENTS, *POLLING], {"fedavg"})
)
def test_a_model_of_all_kinds_learns_over_compressed_links(strategy, compressor):
    experiment, run = trained(strategy, *f"compressor={compressor}".split())
    check(experiment, run, tied=1e-5, counted=strategy != ANCHORS)


def test_a_compressed_downlink_brings_every_kind():
    experiment, run = trained("fedavg", "compressor=int8", "compressor@downlink=ef21")
    check(experiment, run)


@pytest.mark.parametrize("strategy", GRADIENTS)
def test_methods_that_step_by_gradients_alone_refuse_what_has_none(strategy):
    with pytest.raises(ConfigError, match=r"moved by gradients alone, and 'seen' .* has none"):
        build(configured(strategy, "client=gradient", *KINDS))
    with pytest.raises(ConfigError, match=r"'second\.weight' .* has none of its own"):
        build(configured(strategy, "client=gradient", "model._target_=all_kinds.Tied", *KINDS[1:]))


@pytest.mark.parametrize("strategy", OUTER)
def test_outer_steps_refuse_what_is_no_parameter(strategy):
    with pytest.raises(ConfigError, match=r"differences of parameters, and 'seen' .* is none"):
        build(configured(strategy, *KINDS))


@pytest.mark.parametrize("strategy", mostly_slow([*GRADIENTS, *OUTER], {"diloco", "onebit_adam"}))
def test_scalars_empty_and_narrow_tensors_learn_where_buffers_are_refused(strategy):
    experiment, run = trained(strategy, model="OnlyTrained")
    first, last = values(experiment.initial()), values(run.arrays)
    assert last["scale"].shape == ()
    assert last["empty"].shape == (0, 3)
    assert last["narrow"].dtype == np.float16
    for name in ("scale", "head.weight", "narrow"):
        if (strategy, name) != ("just_one_byte", "narrow"):  # whose steps are below float16's
            assert (last[name] != first[name]).any()


@pytest.mark.parametrize("strategy", mostly_slow(OUTER, {"local_sgd"}))
def test_outer_steps_keep_tied_parameters_tied(strategy):
    _, run = trained(strategy, model="Tied")
    last = values(run.arrays)
    np.testing.assert_array_equal(last["second.weight"], last["first.weight"])


# ---- the numbers that come out -------------------------------------------------------------------


@cache
def plain_run(strategy, *overrides):
    return trained(strategy, *overrides)


@pytest.mark.parametrize("strategy", ["fedavg", "scaffold"])
def test_integers_become_the_median_of_what_clients_counted(strategy):
    experiment, run = plain_run(strategy)
    sizes = sorted(len(experiment.data.partitions[i]) for i in range(CLIENTS))
    assert len(set(sizes)) > 1  # or the median would be anybody's
    # Each adds its examples, an epoch a round; of four the median is the second.
    assert run.arrays["seen"].numpy() == ROUNDS * sizes[1]
    steps = sorted(math.ceil(size / 50) for size in sizes)
    assert run.arrays["norm.num_batches_tracked"].numpy() == ROUNDS * steps[1]


@pytest.mark.parametrize("strategy", ["fedavg", "fednova", "fedadam"])
def test_float64_buffers_become_the_weighted_mean_of_what_clients_counted(strategy):
    experiment, run = plain_run(strategy)
    sizes = np.array([len(experiment.data.partitions[i]) for i in range(CLIENTS)])
    expected = ROUNDS * (sizes**2).sum() / sizes.sum()
    total = run.arrays["total"].numpy()
    assert total.dtype == np.float64
    np.testing.assert_allclose(total[1], expected, rtol=1e-6)  # float32's precision


def test_under_signs_a_trained_parameter_costs_a_bit():
    experiment, run = trained("fedavg", "compressor=sign")
    sent = sum(value.size for value in values(experiment.initial()).values())
    per_reply = run.summary["totals"]["bytes_up"] / (ROUNDS * CLIENTS)
    # A bit for each trained parameter; names, headers, buffers and metrics are a constant.
    assert per_reply < sent / 8 + 2000


def test_a_robust_rule_lets_no_client_decide_about_integers():
    model = AllKinds((8,), 3)
    layout = Layout.of(model)
    honest = carried(layout, ArrayRecord(model.state_dict()))
    hostile = {
        "norm.num_batches_tracked": Array(np.array(2**62)),
        "seen": Array(np.array(-(2**31), dtype=np.int32)),
        "mask": Array(np.zeros(8, dtype=bool)),
    }
    for order in (
        [hostile, honest, honest],
        [honest, hostile, honest],
        [hostile, honest, honest, honest, hostile],
    ):
        median = median_carried(layout, order)
        for name, array in honest.items():
            np.testing.assert_array_equal(median[name].numpy(), array.numpy())


# ---- the other parts -----------------------------------------------------------------------------


@pytest.mark.parametrize("attack", ["alie", pytest.param("gauss", marks=slow)])
def test_an_attack_forges_floats_and_leaves_the_other_entries_true(attack):
    overrides = ["aggregator=median", f"attack={attack}", "num_byzantine=1"]
    experiment, run = trained("fedavg", *overrides)
    assert run.summary["faults"] == {"forged": ROUNDS}
    last = values(run.arrays)
    assert (last["seen"].dtype, last["mask"].dtype) == (np.int32, bool)
    np.testing.assert_array_equal(last["mask"], values(experiment.initial())["mask"])
    assert np.isfinite(run.history[-1]["loss"])


@pytest.mark.parametrize("more", [[], ["compressor=topk"]], ids=["", "topk"])
def test_under_a_strategy_of_flowers_it_does_so_too(more):
    config = configured("fedavg", *KINDS, *more)
    built = build(config)
    between = replace(built.strategy.exchange, attack=IPM(0.5), byzantine=frozenset({1}))
    flowers = FedAvg(min_train_nodes=CLIENTS, min_available_nodes=CLIENTS, fraction_evaluate=0.0)
    experiment = replace(built, strategy=driver_of(flowers).within(between))

    def server(grid, context, recorder):
        serve(experiment, config, grid, recorder)

    run = simulate(server, experiment.app, experiment.fleet, executor="serial", progress=False)
    assert run.summary["faults"] == {"forged": ROUNDS}
    last, first = values(run.arrays), values(experiment.initial())
    assert {k: v.dtype for k, v in last.items()} == {k: v.dtype for k, v in first.items()}
    np.testing.assert_array_equal(last["mask"], first["mask"])


@pytest.mark.parametrize("noise", [1e-5, 1e-3])
def test_differential_privacy_clips_and_noises_floats_alone(noise):
    config = configured("fedavg", *KINDS)
    built = build(config)
    private = DifferentialPrivacyServerSideFixedClipping(
        FedAvg(min_train_nodes=CLIENTS, min_available_nodes=CLIENTS, fraction_evaluate=0.0),
        noise_multiplier=noise,
        clipping_norm=1e3,
        num_sampled_clients=CLIENTS,
    )
    experiment = replace(
        built, strategy=driver_of(private).within(Exchange(layout=built.app.layout))
    )

    def server(grid, context, recorder):
        serve(experiment, config, grid, recorder)

    fleet = experiment.fleet
    run = simulate(server, experiment.app, fleet, executor="serial", progress=False)
    assert (run.summary["status"], run.summary["faults"]) == ("completed", {})
    first, last = values(experiment.initial()), values(run.arrays)
    for name in ("seen", "norm.num_batches_tracked", "mask"):
        # What clients counted would be released without noise.
        np.testing.assert_array_equal(last[name], first[name])
    np.testing.assert_array_equal(last["again.weight"], last["hidden.weight"])
    assert (last["hidden.weight"] != first["hidden.weight"]).any()
    # A standard deviation of 0.25 makes variances negative, of which there is no root.
    assert (run.arrays["norm.running_var"].numpy() >= 0).all()
    assert np.isfinite([row["loss"] for row in run.history]).all()


def test_clients_evaluate_and_keep_memories_of_such_models():
    overrides = ["strategy.fraction_evaluate=1.0", "strategy.min_evaluate_nodes=4"]
    experiment, run = trained("fedavg", *overrides, "client=momentum")
    check(experiment, run)
    assert 0 < run.history[-1]["client_loss"] < run.history[0]["loss"] * 2


def test_a_journal_gives_every_kind_back_as_it_was():
    experiment, _ = plain_run("fedavg")
    content = RecordDict({"arrays": experiment.initial()})
    _, back = decode(b"".join(encode({}, {"content": content})))
    assert back["content"]["arrays"] == content["arrays"]


def test_a_model_without_anything_to_train_is_refused():
    with pytest.raises(ConfigError, match="nothing to train"):
        build(configured("fedavg", "model._target_=all_kinds.AllFrozen", *KINDS[1:]))


def test_a_model_in_half_precision_throughout_is_refused_with_the_remedy():
    with pytest.raises(ConfigError, match=r"does not fit the data: .* needs \.float\(\)"):
        ran("fedavg", "model._target_=all_kinds.AllHalf", *KINDS[1:])


def test_an_initial_model_with_infinities_is_refused_with_the_remedy():
    with pytest.raises(ConfigError, match=r"not finite in 'mask'.*not persistent"):
        build(configured("fedavg", "model._target_=all_kinds.Masked", *KINDS[1:]))


def test_one_step_is_pytorchs_own():
    experiment, run = trained("fedavg", "client.batch_size=null", "num_clients=1", *ONE)
    model = experiment.model().train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(ROUNDS):  # an epoch of one batch a round
        x, y = experiment.data.client(0)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    for name in run.arrays:
        value = model.state_dict()[name]
        # The float16 parameter is rounded once a round, as PyTorch rounds it once a step.
        rtol = 2e-3 if name == "narrow" else 1e-4
        got = run.arrays[name].numpy()
        np.testing.assert_allclose(got, value.numpy(), rtol=rtol, atol=1e-5, err_msg=name)
