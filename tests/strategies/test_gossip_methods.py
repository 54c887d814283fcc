"""Push-sum, gradient tracking, CHOCO and MoNNA: closed forms and the values of the document."""

from __future__ import annotations

import numpy as np
import pytest
from networks import A3, B3, BEST3, Q3, W3, Given, attacked, run
from stand_ins import Client, Scripted, ScriptedFaults

from fl.attacks import ALIE, IPM, Constant, Gauss, Optimized, SignFlip
from fl.compression import ErrorFeedback, Identity, Qsgd, TopK
from fl.errors import ConfigError
from fl.simulation.kernel.trace import Event
from fl.simulation.world.faults import Faults, TaskFaults
from fl.strategies import CHOCO, DPSGD, SGP, DFedAvg, GradientTracking, MoNNA
from fl.topologies import Complete, ErdosRenyi, OnePeerExponential, PushSum, Ring

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
    ran = run(SGP(topology=PUSH), num_rounds=40, change=Begins([3, 0, 6]))
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
    method = SGP(topology=topology)
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
    assert sum(method.w) == pytest.approx(n, rel=1e-5)
    assert sum(x[0] for x in method.x) == pytest.approx(n, rel=1e-5)
    assert min(method.w) > 0
    assert max(method.w) > 1.05  # they have moved


def test_push_sum_on_doubly_stochastic_weights_is_adapt_then_combine_dpsgd():
    sgp, dsgd = (run(m(topology=Q3), num_rounds=12) for m in (SGP, DFedAvg))
    for x, z in zip(dsgd.models, sgp.models, strict=True):
        np.testing.assert_allclose(z, x, **TIGHT)


def test_a_push_is_a_model_and_a_weight_on_every_directed_edge():
    ran = run(SGP(topology=PUSH), num_rounds=3)
    assert ran.grid.engine.bytes_up == 3 * 4 * (SIZE + 4)


def test_sgp_learns_on_a_directed_graph_where_others_are_refused():
    n, centres = 8, np.linspace(-2, 5, 8)
    ran = run(SGP(topology=OnePeerExponential(n)), a=np.ones(n), b=centres, num_rounds=300, lr=0.02)
    assert abs(ran.models[-1].mean() - centres.mean()) < 0.05
    with pytest.raises(ConfigError, match="use strategy=sgp"):
        DFedAvg(topology=PUSH)


# ---- gradient tracking ---------------------------------------------------------------------------


class Watched(GradientTracking):
    def begin(self, swarm):
        super().begin(swarm)
        self.sums = []

    def learn(self, i, answer):
        super().learn(i, answer)
        if i == self.n - 1:
            self.sums.append((sum(y[0] for y in self.y), sum(g[0] for g in self.g)))


def test_gradient_tracking_has_the_documents_iterates_and_no_bias():
    method = Watched(topology=Q3, eta=0.1)
    ran = run(method, num_rounds=400)
    np.testing.assert_allclose(ran.models[1][:, 0], [0.1, 0.35, 0.95], **TIGHT)
    np.testing.assert_allclose(ran.models[2][:, 0], [0.41, 0.65625, 1.36875], **TIGHT)
    # sum_i y_i = sum_i g_i(x_i) in every round; the first three are the document's.
    assert [y for y, _ in method.sums[:3]] == pytest.approx([-14.0, -10.35, -8.17125], rel=1e-6)
    for tracked, gradients in method.sums:
        assert tracked == pytest.approx(gradients, abs=2e-5)
    np.testing.assert_allclose(ran.models[-1], BEST3, rtol=2e-6)
    biased = run(DPSGD(topology=Q3), num_rounds=400).models[-1]
    assert np.abs(biased - BEST3).max() > 0.5


def test_gradient_tracking_sends_two_models_an_edge():
    ran = run(GradientTracking(topology=Q3), num_rounds=3)
    assert ran.grid.engine.bytes_up == 3 * 4 * 2 * SIZE


def test_a_node_that_was_away_does_not_break_what_is_tracked():
    method = Watched(topology=Q3, eta=0.1)
    away = Scripted(3, {2: [2.0, 4.0]})
    ran = run(method, num_rounds=400, availability=away)
    assert ran.grid.trace.faults()["absent"] >= 2
    tracked, gradients = method.sums[-1]
    assert tracked == pytest.approx(gradients, abs=2e-5)
    np.testing.assert_allclose(ran.models[-1], BEST3, rtol=2e-6)


def test_a_client_that_sends_no_gradient_is_rejected():
    class Other(GradientTracking):
        needs = ("other",)

    ran = run(Other(topology=Q3), num_rounds=2)
    assert ran.grid.trace.faults() == {"rejected": 6, "absent": 6}
    assert not ran.models[-1].any()


# ---- CHOCO ---------------------------------------------------------------------------------------


def test_choco_without_compression_and_gamma_1_is_dpsgd():
    choco = run(CHOCO(topology=Q3, compressor=Identity(), gamma=1.0), num_rounds=12)
    dsgd = run(DFedAvg(topology=Q3), num_rounds=12)
    for x, z in zip(dsgd.models, choco.models, strict=True):
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
        CHOCO(topology=Given.of(third), compressor=TopK(k=1), gamma=0.4),
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
    method = CHOCO(topology=Ring(5), compressor=TopK(k=1), gamma=0.4)
    ran = run(method, a=np.ones(5), b=np.arange(1, 6), num_rounds=4)
    assert ran.grid.engine.bytes_up == 4 * 10 * method.size[0]
    assert set(method.size) == {method.size[0]}
    assert method.size[0] < SIZE


def test_who_has_missed_a_message_gets_the_copy_itself_with_the_next():
    class Loses(Faults):
        def loses_transfer(self, seed, source, target, index):
            return (source, target, index) == (2, 1, 1)

    method = CHOCO(topology=Q3, compressor=TopK(k=1), gamma=0.4)
    ran = run(method, num_rounds=4, faults=Loses())
    sizes = [e[4] for e in ran.of(Event.TRANSFER) if (e[5], e[2]) == (2.0, 1)]
    assert sizes == [method.size[0], SIZE, method.size[0]]
    lost = [e[4] for e in ran.of(Event.TRANSFER_LOST)]
    assert lost == [method.size[0]]


def test_a_node_that_was_away_gets_whole_copies_and_its_own_needs_no_repeat():
    method = CHOCO(topology=Q3, compressor=TopK(k=1), gamma=0.4)
    faults = ScriptedFaults(script={(2, 1): TaskFaults(dropout_at=0.5)}, detection_s=0.0)
    ran = run(method, num_rounds=4, faults=faults)
    small = method.size[0]
    to = [e[4] for e in ran.of(Event.TRANSFER) if (e[5], e[2]) == (1.0, 2)]
    back = [e[4] for e in ran.of(Event.TRANSFER) if (e[5], e[2]) == (2.0, 1)]
    assert (to, back) == ([small, SIZE, small], [small] * 3)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: CHOCO(topology=Q3, compressor=TopK(k=1), gamma=1.5), "at most 1"),
        (
            lambda: CHOCO(topology=Q3, compressor=ErrorFeedback(TopK(k=1))),
            "as CHOCO does itself",
        ),
        (
            lambda: CHOCO(topology=Given.of(W3, W3), compressor=TopK(k=1)),
            "a graph that stays",
        ),
        (lambda: CHOCO(topology=OnePeerExponential(4), compressor=TopK(k=1)), "symmetric"),
        (lambda: MoNNA(topology=Ring(5), f=1), r"strategy\.f=0"),
        (lambda: GradientTracking(topology=Q3, eta=0.0), "eta is 0"),
    ],
)
def test_what_makes_no_sense_is_refused(make, words):
    with pytest.raises(ConfigError, match=words):
        make()


def test_a_compressor_whose_errors_grow_is_refused():
    with pytest.raises(ConfigError, match=r"has variance 1\.41 on this model"):
        run(CHOCO(topology=Q3, compressor=Qsgd(levels=1)), num_rounds=1)  # sqrt(2) / 1


def test_choco_with_a_random_compressor_repeats_itself():
    ran = [
        run(
            CHOCO(topology=Ring(5), compressor=Qsgd(levels=4), seed=s),
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
    monna = run(MoNNA(topology=Complete(n), f=0), a=np.ones(n), b=np.arange(n), num_rounds=10)
    mean = run(DFedAvg(topology=Complete(n)), a=np.ones(n), b=np.arange(n), num_rounds=10)
    for x, z in zip(mean.models, monna.models, strict=True):
        np.testing.assert_allclose(z, x, **TIGHT)


def test_monna_goes_on_without_the_last_f_and_averages_the_nearest():
    # 4 nodes, f = 1: own and the first two others; of the three the two nearest to the own.
    models = [0.0, 1.0, 5.0, 100.0]
    ran = run(
        MoNNA(topology=Complete(4), f=1),
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
        Constant(0.0),
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

    robust = last(MoNNA(topology=Complete(n), f=f))
    assert robust.shape == (7, 2)  # those of honest nodes
    assert np.abs(robust - centres[:7].mean()).max() < 1.0
    if isinstance(attack, SignFlip | Gauss | IPM | Constant):
        led = last(DFedAvg(topology=Complete(n)))
        assert np.abs(led - centres[:7].mean()).max() > 2.0


def test_an_attack_knows_all_honest_models_of_the_exchange_and_all_get_the_same():
    seen = []

    class Spy(SignFlip):
        def forge(self, honest, own, scene):
            seen.append((honest[:, 0].tolist(), own[:, 0].tolist()))
            return super().forge(honest, own, scene)

    method = DFedAvg(topology=Complete(4))
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
    assert method.x[1][0] == (1 + 2 + 6 + 8) / 4
    assert ran.grid.trace.faults() == {"forged": 1}


def test_what_is_not_finite_is_thrown_away():
    method = DFedAvg(topology=Complete(4))
    method = attacked(method, Constant(float("inf")), [3])
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
    made = method(topology=Complete(n))
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


@pytest.mark.parametrize("kind", [SGP, GradientTracking])
def test_methods_that_exchange_more_than_models_take_no_forged_ones(kind):
    with pytest.raises(ConfigError, match="use strategy=monna"):
        attacked(kind(topology=Q3), SignFlip(), [0])


def test_an_attack_on_a_rule_needs_one():
    with pytest.raises(ConfigError, match="DFedAvg averages: use strategy=monna"):
        attacked(DFedAvg(topology=Q3), Optimized(IPM()), [0])
