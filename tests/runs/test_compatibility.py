"""The table of what is refused: every row by itself, and the page that prints it."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from fl.attacks import IPM
from fl.clients import (
    APFL,
    AdamW,
    AnchorSampling,
    CodedGradient,
    ControlVariates,
    Ditto,
    Gradient,
    Hypergradient,
    MoreauEnvelope,
    PerFedAvg,
    Projected,
    Proximal,
    Sgd,
    TwoPoint,
)
from fl.compression import EF21, Cast, JustOneByte, Marina, OneByteSpsa, Qsgd, TopK
from fl.runs.combination import Combination
from fl.runs.compatibility import REFUSALS, refusals
from fl.simulation.world.hierarchies import AggregatorMachine, Edge, Lifl
from fl.strategies import Driver, Replicas, Traits
from fl.vectors.layout import Layout

PAGE = Path(__file__).parents[2] / "docs" / "compatibility.md"


class Such(Driver):
    """A strategy that is what it is said to be."""

    traits = None

    def __init__(self, asked, **traits):
        self.traits = Traits(**traits)
        self.asked = asked

    def cohort(self, num_clients):
        return self.asked


def such(asked=10, **traits):
    return Such(asked, **traits)


SERVER = such()
HYPER = such(carries=("last_update",))
LAYOUT = Layout.of_vector("w", 4)
PEERS = such(meets="peers", compressors="none")
MACHINE = AggregatorMachine(
    **dict.fromkeys((f.name for f in fields(AggregatorMachine)), 0.0) | {"nic_bps": 1.0}
)
LIFL = Lifl(machine=MACHINE)
RING = such(meets="ring", compressors="memoryless", continues=True)
STAGED = such(meets="stages", sends="gradient")

BYTES = Replicas(JustOneByte(4, 0.1, OneByteSpsa(8)))
CODED = such(sends="gradient", needs=("gradient",), combinations=True)

# What is refused, with a choice that differs from it by one part, and goes.
PAIRS = {
    "Compressors and strategies that pass time alone": (
        Combination(such(meets="peers", compressors="none", learns=False), Cast("bf16")),
        Combination(such(meets="peers"), Cast("bf16")),
    ),
    "Attacks on updates and strategies that pass time alone": (
        Combination(such(meets="peers", learns=False), attack=IPM()),
        Combination(such(meets="peers"), attack=IPM()),
    ),
    "Several models and a strategy of one": (
        Combination(SERVER, tasks=True),
        Combination(such(several_models=True), tasks=True),
    ),
    "Machines that add updates up, and aggregators that look at each of them": (
        Combination(such(aggregator="Krum"), hierarchy=LIFL),
        Combination(such(sums=True), hierarchy=LIFL),
    ),
    "Machines that add updates up, and strategies that look at more than a weighted mean": (
        Combination(SERVER, hierarchy=LIFL),
        Combination(such(sums=True), hierarchy=LIFL),
    ),
    "Edge servers with models of their own, and other hierarchies": (
        Combination(such(sums=True, edges=3), hierarchy=LIFL),
        Combination(such(sums=True, edges=3), hierarchy=Edge(machine=MACHINE, edges=3)),
    ),
    "One model and a strategy of several": (
        Combination(such(several_models=True)),
        Combination(SERVER),
    ),
    "Compressors and a method that is one": (
        Combination(such(sends="payload", compressors="none"), Cast("bf16"), rule=Gradient()),
        Combination(such(sends="payload"), Cast("bf16"), rule=Gradient()),
    ),
    "A downlink without a server": (Combination(PEERS, None, Cast("bf16")), Combination(PEERS)),
    "A downlink in a ring": (
        Combination(RING, Cast("bf16"), Cast("bf16")),
        Combination(RING, Cast("bf16")),
    ),
    "A downlink between stages": (
        Combination(STAGED, Cast("bf16"), Cast("bf16")),
        Combination(STAGED, Cast("bf16")),
    ),
    "Attacks on updates between stages": (
        Combination(STAGED, attack=IPM()),
        Combination(RING, attack=IPM()),
    ),
    "Client rules between stages": (
        Combination(STAGED, rule=Sgd(lr=0.1)),
        Combination(STAGED, rule=Gradient()),
    ),
    "Local layers, adapters and stages": (
        Combination(STAGED, adapted=True),
        Combination(STAGED),
    ),
    "Compressors that need every client in every round": (
        Combination(such(asked=9), Marina(Qsgd(levels=4), p=0.1), num_clients=10),
        Combination(such(asked=10), Marina(Qsgd(levels=4), p=0.1), num_clients=10),
    ),
    "Strategies that step by gradients and clients whose steps have no direction of their own": (
        Combination(such(sends="gradient"), rule=AdamW(lr=0.1)),
        Combination(such(sends="gradient"), rule=Sgd(lr=0.1)),
    ),
    "Strategies that step by gradients and corrections of them": (
        Combination(such(sends="gradient"), rule=Sgd(lr=0.1), correction=Proximal()),
        Combination(SERVER, rule=Sgd(lr=0.1), correction=Proximal()),
    ),
    "Clients that send gradients and strategies that combine models": (
        Combination(SERVER, rule=Gradient()),
        Combination(SERVER, rule=Sgd(lr=0.1)),
    ),
    "Vectors beside the model that only one end knows": (
        Combination(such(carries=("c",), needs=("delta_c",)), rule=Sgd(lr=0.1)),
        Combination(
            such(carries=("c",), needs=("delta_c",)),
            rule=Sgd(lr=0.1),
            correction=ControlVariates(),
        ),
    ),
    "Clients that forget between tasks that are one training": (
        Combination(RING, rule=AdamW(lr=0.1, keep_moments=False)),
        Combination(RING, rule=AdamW(lr=0.1, keep_moments=True)),
    ),
    "Compressors and combinations that the server decodes": (
        Combination(CODED, Cast("bf16"), rule=CodedGradient()),
        Combination(CODED, rule=CodedGradient()),
    ),
    "A downlink and combinations that the server decodes": (
        Combination(CODED, None, Cast("bf16"), rule=CodedGradient()),
        Combination(CODED, rule=CodedGradient()),
    ),
    "Attacks on updates and combinations that the server decodes": (
        Combination(CODED, attack=IPM(), rule=CodedGradient()),
        Combination(CODED, rule=CodedGradient()),
    ),
    "A downlink of several models": (
        Combination(such(downlink=False), None, Cast("bf16")),
        Combination(SERVER, None, Cast("bf16")),
    ),
    "Compressors and models that clients merge": (
        Combination(such(meets="peers", compressors="none", merges="order"), Qsgd(levels=4)),
        Combination(such(meets="peers"), Qsgd(levels=4)),
    ),
    "Compressors and messages that are handed on": (
        Combination(such(meets="peers", compressors="none"), Qsgd(levels=4)),
        Combination(such(meets="peers"), Qsgd(levels=4)),
    ),
    "Compressors and parts that lack single weights": (
        Combination(such(partial="stays", compressors="none"), Qsgd(levels=4)),
        Combination(such(partial="stays"), Qsgd(levels=4)),
    ),
    "Compressors that remember and parts that change": (
        Combination(such(partial="changes"), EF21(TopK(0.5)), layout=LAYOUT),
        Combination(such(partial="stays"), EF21(TopK(0.5)), layout=LAYOUT),
    ),
    "Compressors that need every client and parts of the model": (
        Combination(such(partial="stays"), Marina(Qsgd(levels=4), p=0.1), num_clients=10),
        Combination(such(partial="stays"), Qsgd(levels=4), num_clients=10),
    ),
    "Forged updates, compressors and parts of the model": (
        Combination(such(partial="stays"), Qsgd(levels=4), attack=IPM()),
        Combination(such(partial="stays"), attack=IPM()),
    ),
    "Clients that remember and parts that change": (
        Combination(such(partial="changes"), rule=AdamW(lr=0.1, keep_moments=True)),
        Combination(such(partial="changes"), rule=Sgd(lr=0.1)),
    ),
    "Clients with a model of their own and parts of the model": (
        Combination(such(partial="stays"), rule=Sgd(lr=0.1), correction=Ditto()),
        Combination(SERVER, rule=Sgd(lr=0.1), correction=Ditto()),
    ),
    "Local layers and parts of the model": (
        Combination(such(partial="stays"), rule=Sgd(lr=0.1), keeps=True),
        Combination(SERVER, rule=Sgd(lr=0.1), keeps=True),
    ),
    "Local layers and models that clients merge": (
        Combination(such(meets="peers", merges="weights"), rule=Sgd(lr=0.1), keeps=True),
        Combination(PEERS, rule=Sgd(lr=0.1), keeps=True),
    ),
    "Adapters and parts of the model": (
        Combination(such(partial="stays"), rule=Sgd(lr=0.1), adapted=True),
        Combination(SERVER, rule=Sgd(lr=0.1), adapted=True),
    ),
    "Servers that are for one client rule, and clients with another": (
        Combination(such(client_rule=MoreauEnvelope), rule=Sgd(lr=0.1)),
        Combination(such(client_rule=MoreauEnvelope), rule=MoreauEnvelope()),
    ),
    "Compressors where nothing is sent": (
        Combination(such(meets="peers", alone=True), Qsgd(levels=4)),
        Combination(such(meets="peers"), Qsgd(levels=4)),
    ),
    "Attacks on updates where nothing is sent": (
        Combination(such(meets="peers", alone=True), attack=IPM()),
        Combination(such(meets="peers"), attack=IPM()),
    ),
    "Corrections that count on the length of steps, and optimizers that choose it themselves": (
        Combination(HYPER, rule=AdamW(lr=0.1, keep_moments=False), correction=Hypergradient()),
        Combination(HYPER, rule=Sgd(lr=0.1), correction=Hypergradient()),
    ),
    "Clients that decide when to contact the server, and strategies that decide it for them": (
        Combination(such(interrupts=True), rule=Sgd(lr=0.1), contacts=True),
        Combination(SERVER, rule=Sgd(lr=0.1), contacts=True),
    ),
    "Gradients charged as projections, and strategies that do not project them": (
        Combination(BYTES, rule=Gradient(), estimator=Projected(9)),
        Combination(BYTES, rule=Gradient(), estimator=Projected(8)),
    ),
    "Estimates of gradients and stages": (
        Combination(STAGED, rule=Gradient(), estimator=TwoPoint()),
        Combination(SERVER, rule=Sgd(lr=0.1), estimator=TwoPoint()),
    ),
    "Local layers and strategies that step by gradients": (
        Combination(such(sends="gradient"), rule=Gradient(), keeps=True),
        Combination(SERVER, rule=Sgd(lr=0.1), keeps=True),
    ),
    "Local layers and clients that must not move in some tasks": (
        Combination(
            such(carries=("vbar",), needs=("v",)),
            rule=Sgd(lr=0.1),
            correction=AnchorSampling(),
            keeps=True,
        ),
        Combination(SERVER, rule=Sgd(lr=0.1), correction=Proximal(), keeps=True),
    ),
}


@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda refusal: refusal.what)
def test_each_row_refuses_its_pair_and_no_other_row_does(refusal):
    refused, goes = PAIRS[refusal.what]
    assert [r.what for r in REFUSALS if r.when(refused)] == [refusal.what]
    assert list(refusals(goes)) == []
    (message,) = refusals(refused)
    assert message.startswith(refusal.given.partition("{")[0])
    assert "{" not in message


@pytest.mark.parametrize(
    ("carries", "needs", "correction", "words"),
    [
        (("c",), ("delta_c",), Proximal(mu=0.1), ["is proximal", "=control_variates", "fedprox"]),
        ((), (), ControlVariates(), ["is control_variates", "leave", "strategy=scaffold"]),
        (("c",), ("delta_c",), None, ["client.rule is Sgd", "client/correction=control_variates"]),
        (("odd",), (), ControlVariates(), ["by default", "strategy=scaffold"]),
    ],
)
def test_remedies_name_the_members_that_know_the_same_vectors(carries, needs, correction, words):
    strategy = such(carries=carries, needs=needs)
    choice = Combination(strategy, rule=Sgd(lr=0.1), correction=correction)
    (message,) = refusals(choice)
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    "own", [{"rule": MoreauEnvelope()}, {"rule": Sgd(lr=0.1), "correction": APFL()}]
)
@pytest.mark.parametrize("partial", ["stays", "changes"])
def test_an_own_model_beside_parts_is_refused_for_that_alone(own, partial):
    """The remedy of clients that only remember, parts that stay, would be refused as well."""
    (message,) = refusals(Combination(such(partial=partial), **own))
    assert "fedavg" in message


@pytest.mark.parametrize("keep", [False, None])
def test_a_client_that_keeps_no_moments_goes_with_parts_that_change(keep):
    choice = Combination(such(partial="changes"), rule=AdamW(lr=0.1, keep_moments=keep))
    assert list(refusals(choice)) == []


def test_a_client_that_adapts_the_model_it_receives_goes_with_parts():
    choice = Combination(such(partial="changes"), rule=PerFedAvg())
    assert list(refusals(choice)) == []


def test_the_page_gives_the_reasons_of_the_table():
    told = [line.removeprefix("- ") for line in PAGE.read_text("utf-8").splitlines()]
    assert not {str(refusal) for refusal in REFUSALS} - set(told)
