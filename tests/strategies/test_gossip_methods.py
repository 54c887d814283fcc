"""Push-sum, gradient tracking, CHOCO and MoNNA: closed forms and the values of the document."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

import numpy as np
import pytest
from networks import A3, B3, BEST3, LR, Q3, W3, Given, attacked, run
from stand_ins import Client, Scripted, events
from torch import nn

from fl.aggregation import (
    CenteredClipping,
    FLTrust,
    GeometricMedian,
    Krum,
    Mean,
    Median,
    NormClipping,
    TrimmedMean,
)
from fl.attacks import ALIE, IPM, ConstantUpdate, Gauss, Optimized, SignFlip
from fl.compression import (
    EF21,
    Diana,
    EControl,
    EF21Sgdm,
    ErrorFeedback,
    Identity,
    Marina,
    Qsgd,
    RandK,
    Shapes,
    Sign,
    TopK,
)
from fl.errors import ConfigError
from fl.simulation.kernel.trace import Event
from fl.simulation.world.faults import Faults
from fl.strategies import DPSGD, SGP, DFedAvg, Exchange, Gossip, GradientTracking, MoNNA
from fl.strategies.choco import CHOCO
from fl.topologies import Complete, ErdosRenyi, OnePeerExponential, PushSum, Ring
from fl.vectors.layout import Layout

A, B, W = np.array(A3), np.array(B3), np.array(W3)
TIGHT = {"rtol": 1e-6, "atol": 1e-6}
SIZE = 137  # bytes of a model of two numbers, as a message has it

# Out edges 0 -> {1, 2}, 1 -> 2, 2 -> 0, and self.
P = [[1 / 3, 0, 1 / 2], [1 / 3, 1 / 2, 0], [1 / 3, 1 / 2, 1 / 2]]
PUSH = Given.of(P, kind="columns")


class Begins:
    """Clients whose first task makes a given model, and whose others change nothing."""

    def __init__(self, models):
        self.models = models
        self.begun = set()

    def __call__(self, i, x):
        if i in self.begun:
            return x
        self.begun.add(i)
        return np.full_like(x, self.models[i])


# ---- push-sum ------------------------------------------------------------------------------------


def test_push_sum_is_the_documents_table_and_finds_the_average():
    ran = run(Gossip(SGP(), topology=PUSH), num_rounds=40, change=Begins([3, 0, 6]))
    table = [
        (4.8, 1.2, 3),
        (3.529412, 2.64, 2.816327),
        (3.04186, 3.062937, 2.937931),
        (2.972308, 3.052386, 2.994795),
        (2.987287, 3.012169, 3.003474),
    ]
    for t, z in enumerate(table, 1):
        np.testing.assert_allclose(ran.models[t][:, 0], z, rtol=1e-6)
    np.testing.assert_allclose(ran.models[-1], 3.0, rtol=1e-6)


def test_push_sum_keeps_the_sums_of_models_and_weights_through_every_fault():
    n = 10
    topology = ErdosRenyi(n, p=0.3, directed=True, weights=PushSum(), seed=3)
    method = Gossip(SGP(), topology=topology)
    from fl.simulation.world.availability import ExponentialOnOff

    run(
        method,
        a=np.ones(n),
        b=np.zeros(n),
        num_rounds=50,
        change=lambda i, x: x,
        x0=(1.0,),
        availability=ExponentialOnOff(n, 1, mean_on_s=10.0, mean_off_s=3.0),
        faults=Faults(dropout=0.1, message_loss=0.2, detection_s=0.5),
    )
    w = [state.w for state in method.states]
    assert sum(w) == pytest.approx(n, rel=1e-5)
    assert sum(state.x[0] for state in method.states) == pytest.approx(n, rel=1e-5)
    assert min(w) > 0
    assert max(w) > 1.05  # they have moved


def test_push_sum_on_doubly_stochastic_weights_is_adapt_then_combine_dpsgd():
    sgp, dsgd = (run(Gossip(m(), topology=Q3), num_rounds=12) for m in (SGP, DFedAvg))
    for x, z in zip(dsgd.models, sgp.models, strict=True):
        np.testing.assert_allclose(z, x, **TIGHT)


def test_a_push_is_a_model_and_a_weight_on_every_directed_edge():
    ran = run(Gossip(SGP(), topology=PUSH), num_rounds=3)
    assert ran.grid.engine.bytes_up == 3 * 4 * (SIZE + 4)


def test_sgp_learns_on_a_directed_graph_where_others_are_refused():
    n, centres = 8, np.linspace(-2, 5, 8)
    ran = run(
        Gossip(SGP(), topology=OnePeerExponential(n)),
        a=np.ones(n),
        b=centres,
        num_rounds=300,
        lr=0.02,
    )
    assert abs(ran.models[-1].mean() - centres.mean()) < 0.05
    with pytest.raises(ConfigError, match="use strategy=sgp"):
        Gossip(DFedAvg(), topology=PUSH)


# ---- gradient tracking ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Watched(GradientTracking):
    """Notes the state of each node whenever it has adapted, in the order of the nodes."""

    seen: list = field(default_factory=list)

    def adapt(self, state, progress):
        state = super().adapt(state, progress)
        self.seen.append(state)
        return state


def sums(rule, n, round):
    """Returns sum_i y_i and sum_i g_i after a round in which all nodes have adapted."""
    states = rule.seen[n * (round - 1) : n * round]
    return sum(s.y[0] for s in states), sum(s.g[0] for s in states)


def test_gradient_tracking_has_the_documents_iterates_and_no_bias():
    rule = Watched(eta=0.1)
    ran = run(Gossip(rule, topology=Q3), num_rounds=400)
    np.testing.assert_allclose(ran.models[1][:, 0], [0.1, 0.35, 0.95], **TIGHT)
    np.testing.assert_allclose(ran.models[2][:, 0], [0.41, 0.65625, 1.36875], **TIGHT)
    # sum_i y_i = sum_i g_i(x_i) in every round; the first three are the document's.
    found = [sums(rule, 3, t) for t in range(1, 401)]
    assert [y for y, _ in found[:3]] == pytest.approx([-14.0, -10.35, -8.17125], rel=1e-6)
    for tracked, gradients in found:
        assert tracked == pytest.approx(gradients, abs=2e-5)
    np.testing.assert_allclose(ran.models[-1], BEST3, rtol=2e-6)
    biased = run(Gossip(DPSGD(), topology=Q3), num_rounds=400).models[-1]
    assert np.abs(biased - BEST3).max() > 0.5


def test_gradient_tracking_sends_two_models_an_edge():
    ran = run(Gossip(GradientTracking(), topology=Q3), num_rounds=3)
    assert ran.grid.engine.bytes_up == 3 * 4 * 2 * SIZE


def test_a_node_that_was_away_does_not_break_what_is_tracked():
    method = Gossip(GradientTracking(eta=0.1), topology=Q3)
    away = Scripted(3, {2: [2.0, 4.0]})
    ran = run(method, num_rounds=400, availability=away)
    assert ran.grid.trace.faults()["absent"] >= 2
    y, g = (sum(getattr(s, name)[0] for s in method.states) for name in ("y", "g"))
    assert y == pytest.approx(g, abs=2e-5)
    np.testing.assert_allclose(ran.models[-1], BEST3, rtol=2e-6)


def test_a_client_that_sends_no_gradient_is_rejected():
    class Other(GradientTracking):
        needs = ("other",)

    ran = run(Gossip(Other(), topology=Q3), num_rounds=2)
    assert ran.grid.trace.faults() == {"rejected": 6, "absent": 6}
    assert not ran.models[-1].any()


# ---- CHOCO ---------------------------------------------------------------------------------------


def choco(compressor, rule=None, **gossip):
    """Returns gossip over compressed edges; CHOCO-SGD, unless it is told of another rule."""
    made = Gossip(DFedAvg() if rule is None else rule, **gossip)
    return made.within(Exchange(uplink=compressor))


TOP1 = len(TopK(k=1).encode(np.float32([1, 2]), Shapes.vector(2), {}, None)[0])


def test_choco_without_compression_and_gamma_1_is_dpsgd():
    compressed = run(choco(topology=Q3, compressor=Identity(), gamma=1.0), num_rounds=12)
    dsgd = run(Gossip(DFedAvg(), topology=Q3), num_rounds=12)
    for x, z in zip(dsgd.models, compressed.models, strict=True):
        np.testing.assert_allclose(z, x, **TIGHT)


class FromZero:
    """Clients whose models are given in the first round and left alone afterwards."""

    def __init__(self, rows):
        self.rows, self.begun = rows, set()

    def __call__(self, i, x):
        if i in self.begun:
            return x
        self.begun.add(i)
        return np.array(self.rows[i], np.float32)


def test_choco_gossip_of_the_largest_entry_is_the_documents():
    third = [[1 / 3] * 3] * 3
    rows = [(4, 1), (0, 2), (2, -6)]
    # The copies begin at the initial model, which is 0 as in the document.
    ran = run(
        choco(topology=Given.of(third), compressor=TopK(k=1), gamma=0.4),
        num_rounds=60,
        change=FromZero(rows),
    )
    table = [
        [(2.933333, 0.466667), (0.533333, 0.666667), (2.533333, -4.133333)],
        [(2.488889, -0.244444), (1.262222, -0.311111), (2.248889, -2.444444)],
        [(2.331259, -0.481481), (1.595259, -0.814815), (2.073481, -1.703704)],
    ]
    for t, expected in enumerate(table, 1):
        np.testing.assert_allclose(ran.models[t], expected, rtol=2e-6, atol=2e-6)
    for model in ran.models[1:]:
        np.testing.assert_allclose(model.sum(axis=0), [6, -3], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(ran.models[-1], [(2, -1)] * 3, rtol=1e-3)


def test_choco_sends_what_the_compressor_makes():
    method = choco(topology=Ring(5), compressor=TopK(k=1), gamma=0.4)
    ran = run(method, a=np.ones(5), b=np.arange(1, 6), num_rounds=4)
    assert ran.grid.engine.bytes_up == 4 * 10 * TOP1
    assert TOP1 < SIZE


def sizes(ran, source, target):
    """Returns the sizes of what one node has sent another, lost ones included."""
    kinds = (Event.TRANSFER, Event.TRANSFER_LOST)
    found = [e for e in events(ran.grid.trace) if e[1] in kinds]
    return [e[4] for e in found if (int(e[5]), e[2]) == (source, target)]


def test_who_has_missed_payloads_gets_them_with_the_next():
    class Loses(Faults):
        def loses_transfer(self, seed, source, target, index):
            return (source, target) == (2, 1) and index in (1, 2)

    method = choco(topology=Q3, compressor=TopK(k=1), gamma=0.4)
    ran = run(method, num_rounds=5, faults=Loses())
    assert sizes(ran, 2, 1) == [TOP1, TOP1, 2 * TOP1, 3 * TOP1, TOP1]


def test_who_has_missed_more_than_a_copy_takes_gets_the_copy():
    method = choco(topology=Q3, compressor=TopK(k=1), gamma=0.4)
    away = Scripted(3, {2: [2.0, 20.5]})  # for nineteen rounds
    ran = run(method, num_rounds=24, availability=away)
    assert 20 * TOP1 > SIZE
    assert sizes(ran, 1, 2) == [TOP1] * 2 + [SIZE] + [TOP1] * 2
    assert sizes(ran, 2, 1) == [TOP1] * 5  # the others have missed nothing of its own


def test_all_have_one_copy_of_a_node_whatever_is_lost():
    class Loses(Faults):
        def loses_transfer(self, seed, source, target, index):
            return index % 3 == (source + target) % 3

    method = choco(topology=Complete(4), compressor=TopK(k=1), gamma=0.3)
    ran = run(
        method,
        a=np.ones(4),
        b=np.arange(4),
        num_rounds=300,
        change=Begins([1, 2, 3, 4]),
        faults=Loses(),
    )
    # What is lost one way moves the mean; but they agree, as they would not on two copies of one.
    assert ran.facts[-1]["consensus_rms"] < 1e-3
    assert ran.grid.trace.faults()["transfer_lost"] > 1000


def test_a_graph_that_changes_takes_payloads_of_several_rounds_at_once():
    n = 4
    method = choco(topology=OnePeerExponential(n), compressor=TopK(k=1), gamma=0.4)
    ran = run(method, a=np.ones(n), b=np.arange(n), num_rounds=6)
    # Period 2: every other payload of a neighbour goes to somebody else.
    assert sizes(ran, 0, 1) + sizes(ran, 1, 0) in ([TOP1, 2 * TOP1, 2 * TOP1], [2 * TOP1] * 3)


def recursion(W, Q, gamma, rounds, adapt, d=2):
    """CHOCO-SGD as in the paper, in float64: an oracle that knows nothing of grids."""
    n = len(W)
    x, hat = np.zeros((n, d)), np.zeros((n, d))
    for _ in range(rounds):
        x = adapt(x)
        hat = hat + np.stack([Q(row) for row in x - hat])
        x = x + gamma * (W @ hat - hat)
    return x


def largest(x):
    kept = np.zeros_like(x)
    kept[np.argmax(np.abs(x))] = x[np.argmax(np.abs(x))]
    return kept


@pytest.mark.parametrize(
    "channel",
    [TopK(k=1), ErrorFeedback(TopK(k=1)), EF21(TopK(k=1), first="compressed")],
    ids=["difference", "error feedback", "ef21"],
)
def test_three_channels_of_one_compressor_are_the_papers_recursion(channel):
    b = np.array([(0.0, 1.0), (1.0, 4.0), (4.0, -2.0)])
    ran = run(choco(channel, topology=Q3, gamma=0.3), b=b, num_rounds=25)
    expected = recursion(W, largest, 0.3, 25, lambda x: x - LR * A[:, None] * (x - b))
    np.testing.assert_allclose(ran.models[-1], expected, rtol=1e-4, atol=1e-5)


SLOW = partial(pytest.param, marks=pytest.mark.slow)
CHANNELS = [
    SLOW(TopK(k=1)),
    ErrorFeedback(TopK(k=1)),
    EF21(TopK(k=1)),
    SLOW(EControl(TopK(k=1))),
    SLOW(EF21Sgdm(TopK(k=1))),
    Diana(Qsgd(levels=4)),
    SLOW(Qsgd(levels=1)),
]


@pytest.mark.parametrize("channel", CHANNELS, ids=lambda c: type(c).__name__)
@pytest.mark.parametrize("rule", [DFedAvg, DPSGD], ids=lambda r: r.__name__)
def test_compressed_edges_keep_the_mean_and_reach_it(rule, channel):
    models = np.random.default_rng(0).normal(size=(6, 2)).astype(np.float32)
    once = set()

    def change(i, x):
        if i in once:
            return x
        once.add(i)
        return models[i]

    method = choco(channel, rule(), topology=Complete(6), gamma=0.2)
    ran = run(method, a=np.ones(6), b=np.zeros(6), num_rounds=300, change=change)
    for model in ran.models[1:]:
        np.testing.assert_allclose(model.mean(axis=0), models.mean(axis=0), rtol=1e-4, atol=1e-5)
    assert ran.facts[-1]["consensus_rms"] < 0.02 * ran.facts[1]["consensus_rms"]


def test_compressed_push_sum_keeps_the_sums_and_finds_the_average():
    method = choco(TopK(k=1), SGP(), topology=PUSH, gamma=0.3)
    ran = run(method, num_rounds=300, change=Begins([3, 0, 6]))
    np.testing.assert_allclose(ran.models[-1], 3.0, rtol=1e-3)
    assert sum(state.w for state in method.states) == pytest.approx(3, rel=1e-5)
    np.testing.assert_allclose(sum(state.x for state in method.states), 9.0, rtol=1e-4)
    assert ran.grid.engine.bytes_up < 300 * 4 * (2 * TOP1 + 4)


@pytest.mark.slow
def test_compressed_gradient_tracking_has_no_bias_either():
    method = choco(TopK(k=1), GradientTracking(eta=0.02), topology=Q3, gamma=0.3)
    ran = run(method, num_rounds=1500)
    y, g = (sum(getattr(s, name)[0] for s in method.states) for name in ("y", "g"))
    assert y == pytest.approx(g, abs=1e-4)
    np.testing.assert_allclose(ran.models[-1], BEST3, rtol=1e-4)


def test_buffers_and_what_is_not_trained_are_never_compressed():
    layout = Layout.of(nn.BatchNorm1d(2))  # weight, bias, running_mean, running_var
    choco = CHOCO(TopK(k=1), layout)
    first = np.zeros(8, np.float32)
    message = np.array([1, 2, 3, 4, 5, 6, 7, 8], np.float32)
    copy = choco.send(choco.init(first), message, np.random.default_rng(0))
    assert copy.row.tolist() == [0, 0, 0, 4, 5, 6, 7, 8]
    payload = TopK(k=1).encode(message[:4], Shapes.trained(layout), {}, None)[0]
    assert copy.last_bytes == len(payload) + 4 * 4


def test_gamma_follows_from_what_the_compressor_keeps_unless_it_is_given():
    layout = Layout.of_vector("w", 10)
    assert CHOCO(TopK(k=1), layout).gamma == pytest.approx(0.1**0.5)  # |x - Q(x)|^2 <= 0.9 |x|^2
    assert CHOCO(EF21(TopK(k=1)), layout).gamma == CHOCO(TopK(k=1), layout).gamma
    assert CHOCO(Identity(), layout).gamma == 1.0
    assert CHOCO(Sign("l2"), layout).gamma == 0.5  # nothing is known


@pytest.mark.parametrize(
    ("channel", "why"),
    [
        (ErrorFeedback(TopK(k=1), decay=0.9), "decay is 0.9"),
        (Sign("none"), "Sign"),
        (Marina(RandK(k=1, scaled=True)), "Marina"),
    ],
    ids=["fading memory", "signs", "marina"],
)
def test_channels_that_copies_cannot_follow_are_refused(channel, why):
    with pytest.raises(ConfigError, match=f"compressor .*{why}"):
        Gossip(DFedAvg(), topology=Q3).within(
            Exchange(uplink=channel, layout=Layout.of_vector("w", 2))
        )


def test_there_is_no_downlink():
    with pytest.raises(ConfigError, match="downlink"):
        Gossip(DFedAvg(), topology=Q3).within(Exchange(downlink=Identity()))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: choco(topology=Q3, compressor=TopK(k=1), gamma=1.5), "at most 1"),
        (lambda: Gossip(MoNNA(f=1), topology=Ring(5)), "f=1"),
        (lambda: Gossip(GradientTracking(eta=0.0), topology=Q3), "eta is 0"),
    ],
)
def test_what_makes_no_sense_is_refused(make, words):
    with pytest.raises(ConfigError, match=words):
        make()


def test_choco_with_a_random_compressor_repeats_itself():
    ran = [
        run(
            choco(topology=Ring(5), compressor=Qsgd(levels=4), seed=s),
            a=np.ones(5),
            b=range(5),
            num_rounds=5,
        ).models[-1]
        for s in (0, 0, 1)
    ]
    assert np.array_equal(ran[0], ran[1])
    assert not np.array_equal(ran[0], ran[2])


# ---- MoNNA and attacks ---------------------------------------------------------------------------


def test_monna_that_tolerates_nobody_is_the_plain_average():
    n = 6
    monna = run(
        Gossip(MoNNA(f=0), topology=Complete(n)), a=np.ones(n), b=np.arange(n), num_rounds=10
    )
    mean = run(Gossip(DFedAvg(), topology=Complete(n)), a=np.ones(n), b=np.arange(n), num_rounds=10)
    for x, z in zip(mean.models, monna.models, strict=True):
        np.testing.assert_allclose(z, x, **TIGHT)


def test_monna_goes_on_without_the_last_f_and_averages_the_nearest():
    # 4 nodes, f = 1: own and the first two others; of the three the two nearest to the own.
    models = [0.0, 1.0, 5.0, 100.0]
    ran = run(
        Gossip(MoNNA(f=1), topology=Complete(4)),
        a=np.ones(4),
        b=np.zeros(4),
        num_rounds=1,
        change=Begins(models),
        step_s=[1.0, 2.0, 3.0, 50.0],
    )
    # At 3 s nodes 0, 1 and 2 have each other's; node 3 has them all when it is done, at 50 s,
    # and takes those of nodes 0 and 1, which came first.
    assert ran.models[1][:, 0].tolist() == [0.5, 0.5, 3.0, (100 + 1) / 2]
    assert ran.times == [0.0, 50.0]


@pytest.mark.parametrize(
    "attack",
    [
        ALIE(z=1.5),
        IPM(epsilon=3.0),
        SignFlip(),
        Gauss(sigma=200.0),
        ConstantUpdate(0.0),
        Optimized(IPM(epsilon=1.0)),
    ],
    ids=lambda attack: type(attack).__name__,
)
def test_monna_stays_near_the_honest_where_the_mean_is_led_away(attack):
    n, f = 10, 3
    centres = 10 + np.linspace(-0.5, 0.5, n)

    def last(method):
        method = attacked(method, attack, range(7, 10))
        return run(method, a=np.ones(n), b=centres, num_rounds=80).models[-1]

    robust = last(Gossip(MoNNA(f=f), topology=Complete(n)))
    assert robust.shape == (7, 2)  # those of honest nodes
    assert np.abs(robust - centres[:7].mean()).max() < 1.0
    if isinstance(attack, SignFlip | Gauss | IPM | ConstantUpdate):
        led = last(Gossip(DFedAvg(), topology=Complete(n)))
        assert np.abs(led - centres[:7].mean()).max() > 2.0


def test_an_attack_knows_all_honest_models_of_the_exchange_and_all_get_the_same():
    seen = []

    class Spy(SignFlip):
        def forge(self, honest, own, scene):
            seen.append((honest[:, 0].tolist(), own[:, 0].tolist()))
            return super().forge(honest, own, scene)

    method = Gossip(DFedAvg(), topology=Complete(4))
    method = attacked(method, Spy(), [1])
    ran = run(
        method,
        a=np.ones(4),
        b=np.zeros(4),
        num_rounds=1,
        change=Begins([1.0, 2.0, 6.0, 8.0]),
        step_s=[1.0, 1.0, 4.0, 2.0],
    )
    assert seen == [([1.0, 6.0, 8.0], [2.0])]
    # All honest have -5 from node 1, at 4 s, when the last honest model was there.
    assert ran.models[1][:, 0].tolist() == [(1 + 6 + 8 - 5) / 4] * 3
    assert ran.times == [0.0, 4.0]
    # The Byzantine node itself mixes its own true model.
    assert method.states[1].x[0] == (1 + 2 + 6 + 8) / 4
    assert ran.grid.trace.faults() == {"forged": 1}


def test_what_is_not_finite_is_thrown_away():
    method = Gossip(DFedAvg(), topology=Complete(4))
    method = attacked(method, ConstantUpdate(float("inf")), [3])
    ran = run(
        method, a=np.ones(4), b=np.zeros(4), num_rounds=2, change=Begins([1.0, 2.0, 6.0, 8.0])
    )
    # The fourth weight goes to the own model.
    np.testing.assert_allclose(
        ran.models[1][:, 0], [(2 * x + 9 - x) / 4 for x in (1, 2, 6)], **TIGHT
    )


@pytest.mark.parametrize("method", [DPSGD, DFedAvg])
def test_attacks_and_absences_together_end_no_run(method):
    n = 8
    made = Gossip(method(), topology=Complete(n))
    made = attacked(made, SignFlip(), [0, 1])
    ran = run(
        made,
        a=np.ones(n),
        b=np.ones(n),
        num_rounds=40,
        availability=Scripted(n, {0: [3.0, 9.0], 2: [4.5, 7.0]}),
        faults=Faults(dropout=0.2, message_loss=0.1, detection_s=0.5),
        clients=[Client(flops=1.0)] * n,
    )
    assert len(ran.models) == 41
    assert {"forged", "dropout", "departure", "absent"} <= set(ran.grid.trace.faults())


def test_a_byzantine_node_of_push_sum_forges_its_model_and_keeps_its_weight_true():
    models = [3.0, 0.0, 6.0]
    ran = run(
        attacked(Gossip(SGP(), topology=PUSH), SignFlip(), [2]), num_rounds=1, change=Begins(models)
    )
    # z = w = (3, 0) are honest, and the mean of them is 1.5: node 2 pushes -1.5 with weight 1.
    x, w = np.array([3.0, 0.0, -1.5]), np.ones(3)
    z = (np.array(P) @ x) / (np.array(P) @ w)
    np.testing.assert_allclose(ran.models[1][:, 0], z[:2], **TIGHT)
    assert ran.grid.trace.faults() == {"forged": 1}


def test_a_byzantine_node_of_gradient_tracking_forges_its_model_and_not_its_gradient():
    seen = []

    class Spy(ConstantUpdate):
        def forge(self, honest, own, scene):
            seen.append((honest.shape, own.shape))
            return super().forge(honest, own, scene)

    method = attacked(Gossip(GradientTracking(eta=0.1), topology=Q3), Spy(5.0), [0])
    ran = run(method, num_rounds=1)
    assert seen == [((2, 2), (1, 2))]
    # y_i = g_i(0) = -a_i b_i, and x_i - eta y_i = 0.1 a_i b_i; node 0's is forged to 5.
    x = 0.1 * A * B
    x[0] = 5.0
    np.testing.assert_allclose(ran.models[1][:, 0], (W @ x)[1:], **TIGHT)
    y = [state.y[0] for state in method.states]
    np.testing.assert_allclose(y, W @ (-A * B), **TIGHT)


def test_a_forged_model_goes_through_the_encoder_and_is_charged_like_others():
    method = attacked(
        Gossip(DFedAvg(), topology=Complete(4), gamma=0.3),
        ConstantUpdate(50.0),
        [3],
        uplink=TopK(k=1),
    )
    ran = run(method, a=np.ones(4), b=np.ones(4), num_rounds=1, change=Begins([1, 2, 3, 4]))
    assert ran.grid.engine.bytes_up == 12 * TOP1
    # All copies have one of two entries after the first payload; node 3's says 50 in it.
    hat = np.array([[1, 0], [2, 0], [3, 0], [50, 0]])
    x = np.array([[1, 1], [2, 2], [3, 3]])
    expected = x + 0.3 * (hat.mean(axis=0) - hat[:3])
    np.testing.assert_allclose(ran.models[1], expected, rtol=1e-5)
    # Its own model is mixed as an honest one's would be, with itself as it is.
    own = 4 + 0.3 * ((np.array([1 + 2 + 3, 0]) + 4) / 4 - 4)
    np.testing.assert_allclose(method.states[3].x, own, rtol=1e-5)


def test_what_no_payload_can_hold_is_not_received_and_leaves_the_copies_as_they_were():
    method = Gossip(DFedAvg(), topology=Complete(4))
    for bad in (float("nan"), float("inf")):
        made = attacked(method, ConstantUpdate(bad), [3], uplink=Identity())
        ran = run(made, a=np.ones(4), b=np.ones(4), num_rounds=3, change=Begins([1, 2, 3, 4]))
        np.testing.assert_allclose(ran.models[-1], 2.0, rtol=0.1)
        assert ran.grid.engine.bytes_up == 3 * 3 * 3 * len(
            Identity().encode(np.float32([1, 2]), Shapes.vector(2), {}, None)[0]
        )


@pytest.mark.parametrize("rule", [SGP, GradientTracking], ids=lambda r: r.__name__)
def test_against_sums_an_optimized_attack_sends_the_largest_factor_it_tries(rule):
    """Of 0, 1 and 3."""
    last = []
    for attack in (Optimized(IPM(), evaluations=3), IPM(epsilon=3.0)):
        last.append(
            run(attacked(Gossip(rule(), topology=Q3), attack, [0]), num_rounds=2).models[-1]
        )
    np.testing.assert_array_equal(*last)


def test_an_attack_that_is_not_defined_for_so_few_leaves_nodes_honest(caplog):
    method = attacked(Gossip(DFedAvg(), topology=Complete(3)), ALIE(), [0, 1])
    honest = run(Gossip(DFedAvg(), topology=Complete(3)), num_rounds=2)
    ran = run(method, num_rounds=2)
    np.testing.assert_allclose(ran.models[-1][0], honest.models[-1][2], rtol=1e-6)
    assert "ALIE" in caplog.text


# ---- robust gossip -------------------------------------------------------------------------------


def test_the_mean_by_the_weights_of_w_is_plain_gossip():
    plain, mean = (
        run(Gossip(DFedAvg(), topology=Q3, aggregator=F), num_rounds=5).models[-1]
        for F in (None, Mean())
    )
    assert np.array_equal(plain, mean)


def test_a_node_takes_the_median_of_what_it_has():
    models = [0.0, 1.0, 5.0, 7.0, 100.0]
    method = Gossip(DFedAvg(), topology=Ring(5), aggregator=Median())
    ran = run(method, a=np.ones(5), b=np.zeros(5), num_rounds=1, change=Begins(models))
    expected = [np.median([models[i - 1], models[i], models[(i + 1) % 5]]) for i in range(5)]
    np.testing.assert_allclose(ran.models[1][:, 0], expected, **TIGHT)


def test_an_aggregator_of_updates_is_given_the_differences_to_the_own_model():
    models = [0.0, 1.0, 5.0]
    method = Gossip(DFedAvg(), topology=Complete(3), aggregator=NormClipping(max_norm=2**0.5))
    ran = run(method, a=np.ones(3), b=np.zeros(3), num_rounds=1, change=Begins(models))
    # Of two equal entries, |difference| <= sqrt 2 is an entry of 1 at most.
    expected = [x + np.clip(np.array(models) - x, -1, 1).mean() for x in models]
    np.testing.assert_allclose(ran.models[1][:, 0], expected, **TIGHT)


def test_centered_clipping_is_clipped_gossip_around_the_own_model_by_w():
    models = [0.0, 1.0, 5.0]
    clipping = CenteredClipping(tau=2**0.5, weighted=True)
    method = Gossip(DFedAvg(), topology=Q3, aggregator=clipping)
    ran = run(method, a=np.ones(3), b=np.zeros(3), num_rounds=1, change=Begins(models))
    expected = [
        x + W[i] @ np.clip(np.array(models) - x, -1, 1) for i, x in enumerate(models)
    ]  # He, Karimireddy, Jaggi, arXiv:2202.01545, eq. 5
    np.testing.assert_allclose(ran.models[1][:, 0], expected, **TIGHT)


@pytest.mark.parametrize(
    "aggregator",
    [Median(), SLOW(TrimmedMean(f=3)), GeometricMedian(), SLOW(Krum(f=3))],
    ids=lambda F: type(F).__name__,
)
@pytest.mark.parametrize("uplink", [None, TopK(k=1)], ids=["exact", "compressed"])
@pytest.mark.parametrize("rule", [DPSGD, DFedAvg], ids=lambda r: r.__name__)
def test_robust_gossip_stays_near_the_honest_where_the_mean_is_led_away(rule, uplink, aggregator):
    n = 10
    centres = 10 + np.linspace(-0.5, 0.5, n)

    def last(F):
        made = Gossip(rule(), topology=Complete(n), aggregator=F, gamma=0.5 if uplink else None)
        made = attacked(made, ConstantUpdate(0.0), range(7, 10), uplink=uplink)
        return run(made, a=np.ones(n), b=centres, num_rounds=80).models[-1]

    assert np.abs(last(aggregator) - centres[:7].mean()).max() < 1.0
    assert np.abs(last(None) - centres[:7].mean()).max() > 2.0


def test_who_has_too_few_models_for_the_rule_keeps_its_own():
    away = Scripted(4, {}, offline={3})
    method = Gossip(DFedAvg(), topology=Complete(4), aggregator=TrimmedMean(f=1))
    models = [1.0, 2.0, 6.0, 8.0]
    ran = run(
        method, a=np.ones(4), b=np.zeros(4), num_rounds=1, change=Begins(models), availability=away
    )
    assert ran.models[1][:, 0].tolist() == [2.0, 2.0, 2.0, 0.0]
    lonely = Scripted(4, {}, offline={2, 3})
    ran = run(
        method,
        a=np.ones(4),
        b=np.zeros(4),
        num_rounds=1,
        change=Begins(models),
        availability=lonely,
    )
    assert ran.models[1][:, 0].tolist() == [1.0, 2.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Gossip(SGP(), topology=PUSH, aggregator=Median()), "aggregator is Median.*sum"),
        (
            lambda: Gossip(GradientTracking(), topology=Q3, aggregator=Median()),
            "aggregator is Median.*sum",
        ),
        (
            lambda: Gossip(MoNNA(f=0), topology=Complete(4), aggregator=Median()),
            "aggregator is Median",
        ),
        (lambda: Gossip(DFedAvg(), topology=Q3, aggregator=FLTrust()), "aggregator is FLTrust"),
        (lambda: Gossip(DFedAvg(), topology=Ring(6), aggregator=Krum(f=1)), "f=1"),
        (lambda: Gossip(DFedAvg(), topology=Ring(6), aggregator=Krum(f=0), f=1), "f=1"),
    ],
)
def test_aggregators_that_a_method_or_a_graph_has_no_room_for_are_refused(make, words):
    with pytest.raises(ConfigError, match=words):
        make()
