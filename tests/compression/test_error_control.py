"""Error control: identities of the papers, and convergence where plain compression fails."""

import math
from itertools import pairwise

import numpy as np
import pytest
from members import relative_error, vectors

from fl.compression import (
    EF21,
    Chain,
    Diana,
    EControl,
    EF21Sgdm,
    ErrorFeedback,
    Identity,
    Marina,
    Natural,
    Participation,
    PayloadError,
    Qsgd,
    RandK,
    Receivers,
    Shapes,
    Shrunk,
    Sign,
    TopK,
    UniformQuantizer,
)
from fl.errors import ConfigError

D = 60
SHAPES = Shapes(((6, 8), (12,)))


def vector(seed=0):
    return np.random.default_rng(seed).standard_normal(D).astype(np.float32)


def rng(*key):
    return np.random.default_rng(list(key))


def run(channel, xs, shapes=SHAPES, seed=0):
    """Sends vectors one after another; returns estimates, sender's and receiver's states."""
    state, receiver = channel.init(shapes), channel.init_receiver(shapes)
    estimates, states, receivers = [], [], []
    for t, x in enumerate(xs):
        payload, state = channel.encode(x, shapes, state, rng(seed, t))
        estimate, receiver = channel.receive(payload, shapes, receiver)
        estimates.append(estimate)
        states.append(state)
        receivers.append(receiver)
    return estimates, states, receivers


STREAM = [vector(seed) for seed in range(12)]
TRACKED = {
    "ef21": EF21(TopK(k=6)),
    "ef21-compressed": EF21(TopK(k=6), first="compressed"),
    "ef21-sgdm": EF21Sgdm(TopK(k=6), a=0.3),
    "econtrol": EControl(TopK(k=6), eta=0.1),
    "econtrol-compressed": EControl(TopK(k=6), eta=0.1, first="compressed"),
    "diana": Diana(RandK(k=20, scaled=True)),
    "diana-dense": Diana(Natural(), first="dense"),
    "ef21-int8": EF21(Chain([TopK(k=20), UniformQuantizer(4)])),
    "marina": Marina(RandK(k=20, scaled=True), p=0.02, seed=3),
}
each_tracked = pytest.mark.parametrize("name", TRACKED)


# ---- error feedback ----------------------------------------------------------------------------


def test_error_feedback_with_an_identity_is_the_vector_bit_for_bit():
    estimates, states, _ = run(ErrorFeedback(Identity()), STREAM)
    assert all(y.tobytes() == x.tobytes() for y, x in zip(estimates, STREAM, strict=True))
    assert not any(state["e"].any() for state in states)


@pytest.mark.parametrize(
    "compressor",
    [TopK(k=5), Sign("l1"), Sign("l2"), Chain([TopK(k=20), UniformQuantizer(4)]), Natural()],
)
def test_what_was_not_sent_is_kept(compressor):
    """The residual closes: x + e = what arrives + the next e, also with rounded values."""
    estimates, states, _ = run(ErrorFeedback(compressor), STREAM)
    e = np.zeros(D)
    for x, y, state in zip(STREAM, estimates, states, strict=True):
        assert np.allclose(x + e, y + state["e"].astype(np.float64), atol=1e-5)
        e = state["e"].astype(np.float64)


def test_the_virtual_iterate_of_error_feedback_is_that_of_sgd():
    """x_t - mean e_t moves by exactly -gamma mean g: the form with the step size inside."""
    gamma, clients = 0.1, 3
    channel = ErrorFeedback(TopK(k=4))
    states = [channel.init(SHAPES) for _ in range(clients)]
    x = virtual = np.zeros(D)
    for t in range(20):
        gradients = [x - vector(i) + 0.1 * vector(100 * t + i) for i in range(clients)]
        sent = []
        for i, g in enumerate(gradients):
            payload, states[i] = channel.encode(
                (gamma * g).astype(np.float32), SHAPES, states[i], rng(t, i)
            )
            sent.append(channel.receive(payload, SHAPES, {})[0])
        x = x - np.mean(sent, axis=0, dtype=np.float64)
        virtual = virtual - gamma * np.mean(gradients, axis=0)
        e = np.mean([state["e"] for state in states], axis=0, dtype=np.float64)
        assert np.allclose(x - e, virtual, atol=1e-5)


def test_a_step_size_inside_and_outside_are_the_same_while_it_is_constant():
    inside, _, _ = run(ErrorFeedback(TopK(k=4)), [np.float32(0.5) * x for x in STREAM])
    outside, _, _ = run(ErrorFeedback(TopK(k=4)), STREAM)
    assert all(np.array_equal(a, np.float32(0.5) * b) for a, b in zip(inside, outside, strict=True))
    changing = [np.float32(0.5 ** (t % 3)) for t in range(12)]
    inside, _, _ = run(
        ErrorFeedback(TopK(k=4)), [g * x for g, x in zip(changing, STREAM, strict=True)]
    )
    differ = [not np.allclose(a, g * b) for a, g, b in zip(inside, changing, outside, strict=True)]
    assert any(differ)


def test_error_feedback_sends_everything_in_the_end():
    x = vector()
    estimates, _, _ = run(ErrorFeedback(TopK(k=3)), [x] * 200)
    assert relative_error(np.mean(estimates, axis=0), x) < 0.01


def test_decay_lets_an_old_residual_fade():
    x, zeros = vector(), np.zeros(D, dtype=np.float32)
    _, states, _ = run(ErrorFeedback(TopK(k=1), decay=0.5), [x] + [zeros] * 10)
    assert np.abs(states[-1]["e"]).max() <= np.abs(x).max() * 0.5**10


def test_the_scaled_form_of_randk_is_refused_under_error_feedback():
    with pytest.raises(ConfigError, match="Shrunk"):
        ErrorFeedback(RandK(k=6, scaled=True)).init(SHAPES)
    ErrorFeedback(Shrunk(RandK(k=6, scaled=True))).init(SHAPES)
    ErrorFeedback(RandK(k=40, scaled=True)).init(SHAPES)  # d / k = 1.5: omega is below 1


def test_the_memory_of_the_scaled_form_would_indeed_grow():
    """Kept entries leave (1 - d/k) x: the energy is multiplied by d/k - 1 > 1 per message."""
    energies = {}
    for k in (20, 40):
        c = RandK(k=k, scaled=True)
        e = np.zeros(D, dtype=np.float32)
        for t in range(60):
            p = e + vector(t)
            payload, _ = c.encode(p, SHAPES, {}, rng(t))
            e = p - c.decode(payload, SHAPES)
        energies[k] = float(np.sum(e.astype(np.float64) ** 2))
    assert energies[20] > 1e6
    # omega = 1/2: a geometric series, at most about d / (1 - 1/2).
    assert energies[40] < 10 * D


# ---- what both ends keep -----------------------------------------------------------------------


@each_tracked
def test_both_ends_agree_bit_for_bit(name):
    _, states, receivers = run(TRACKED[name], STREAM)
    if name == "marina":
        return  # the sender keeps its last gradient, the receiver its estimate
    for state, receiver in zip(states, receivers, strict=True):
        assert state["h"].tobytes() == receiver["h"].tobytes()
        assert state["sequence"] == receiver["sequence"]


@each_tracked
def test_a_server_that_keeps_only_the_mean_would_stay_at_the_mean(name):
    """h of the server moves by (alpha times) the mean of what is decoded."""
    channel = TRACKED[name]
    alpha = 1 / (1 + channel.compressor.variance(SHAPES)) if isinstance(channel, Diana) else 1.0
    senders = [channel.init(SHAPES) for _ in range(4)]
    receivers = [channel.init_receiver(SHAPES) for _ in range(4)]
    mean = np.zeros(D)
    for t in range(6):
        decoded = []
        for i in range(4):
            payload, senders[i] = channel.encode(vector(9 * t + i), SHAPES, senders[i], rng(t, i))
            _, receivers[i] = channel.receive(payload, SHAPES, receivers[i])
            if payload[6] == 0:
                decoded.append(np.frombuffer(payload[11:], dtype=np.float32).astype(np.float64))
            else:
                decoded.append(alpha * channel.compressor.decode(payload[11:], SHAPES))
        mean = mean + np.mean(decoded, axis=0)
        of_states = np.mean([receiver["h"] for receiver in receivers], axis=0, dtype=np.float64)
        assert np.allclose(mean, of_states, atol=1e-5)


WITH_IDENTITY = {
    "ef21": EF21(Identity()),
    "ef21-compressed": EF21(Identity(), first="compressed"),
    "ef21-sgdm": EF21Sgdm(Identity(), a=1.0),
    "econtrol": EControl(Identity(), eta=0.3),
    "diana": Diana(Identity()),
    "diana-alpha": Diana(Identity(), alpha=0.4),
    "marina": Marina(Identity(), p=0.2, seed=1),
}


@pytest.mark.parametrize("name", WITH_IDENTITY)
def test_an_identity_makes_every_method_plain_gradient_descent(name):
    estimates, states, _ = run(WITH_IDENTITY[name], STREAM)
    for y, x in zip(estimates, STREAM, strict=True):
        assert np.allclose(y, x, atol=2e-6)
    if name == "econtrol":
        assert max(np.abs(state["e"]).max() for state in states) < 2e-6


def test_ef21_contracts_to_a_vector_that_stays():
    x = vector()
    delta = TopK(k=6).contraction(SHAPES)
    estimates, _, _ = run(EF21(TopK(k=6), first="compressed"), [x] * 12)
    errors = [relative_error(y, x) for y in estimates]
    assert all(b <= (1 - delta) * a + 1e-12 for a, b in pairwise(errors))
    assert errors[9] == 0  # ten messages of 6 of 60 entries


def test_ef21_sgdm_with_weight_one_is_ef21():
    for first in ("dense", "compressed"):
        a, _, _ = run(EF21(TopK(k=6), first=first), STREAM)
        b, _, _ = run(EF21Sgdm(TopK(k=6), a=1.0, first=first), STREAM)
        assert all(x.tobytes() == y.tobytes() for x, y in zip(a, b, strict=True))


def test_ef21_sgdm_follows_the_momentum():
    _, states, _ = run(EF21Sgdm(TopK(k=6), a=0.25), STREAM)
    v = STREAM[0].astype(np.float64)
    for x, state in zip(STREAM[1:], states[1:], strict=True):
        v = 0.75 * v + 0.25 * x
        assert np.allclose(state["v"], v, atol=1e-6)


@pytest.mark.parametrize("first", ["dense", "compressed"])
def test_econtrol_without_feedback_is_ef21(first):
    a, _, _ = run(EF21(TopK(k=6), first=first), STREAM)
    b, _, _ = run(EControl(TopK(k=6), eta=0.0, first=first), STREAM)
    assert all(x.tobytes() == y.tobytes() for x, y in zip(a, b, strict=True))


def test_the_error_of_econtrol_is_what_should_have_been_applied_minus_what_was():
    """e_{t+1} = e_t + g - h_{t+1}, against an independent loop in float64."""
    eta = 0.2
    estimates, states, _ = run(EControl(TopK(k=6), eta=eta), STREAM)
    e, h = np.zeros(D), STREAM[0].astype(np.float64)
    for t, g in enumerate(STREAM[1:], start=1):
        wanted = eta * e + g - h
        d = np.where(np.abs(wanted) >= np.sort(np.abs(wanted))[-6], wanted, 0)
        e = e + g - h - d
        h = h + d
        assert np.allclose(states[t]["e"], e, atol=1e-5)
        assert np.allclose(estimates[t], h, atol=1e-5)
    total = np.sum(STREAM[1:], axis=0, dtype=np.float64) - np.sum(estimates[1:], axis=0)
    assert np.allclose(states[-1]["e"], total, atol=1e-4)


def test_diana_with_rate_zero_is_plain_quantisation():
    q = Qsgd(3, 16)
    estimates, _, _ = run(Diana(q, alpha=0.0), STREAM)
    for t, (x, y) in enumerate(zip(STREAM, estimates, strict=True)):
        payload, _ = q.encode(x, SHAPES, {}, rng(0, t))
        assert y.tobytes() == q.decode(payload, SHAPES).tobytes()


def test_the_estimate_of_diana_is_unbiased_whatever_its_shift_is():
    channel = Diana(RandK(k=15, scaled=True), alpha=0.2)
    _, states, receivers = run(channel, STREAM)
    x = vector(77)
    draws = []
    for t in range(1000):
        payload, _ = channel.encode(x, SHAPES, states[-1], rng(9, t))
        draws.append(channel.receive(payload, SHAPES, receivers[-1])[0])
    draws = np.array(draws, dtype=np.float64)
    error = draws.std(axis=0, ddof=1) / math.sqrt(len(draws))
    assert np.all(np.abs(draws.mean(axis=0) - x) <= 5 * error)


def test_diana_refuses_what_its_theory_does_not_cover():
    with pytest.raises(ConfigError, match="biased"):
        Diana(TopK(k=3)).init(SHAPES)
    with pytest.raises(ConfigError, match=r"1 / \(1 \+ omega\) = 0.25"):
        Diana(RandK(k=15, scaled=True), alpha=0.3).init(SHAPES)


def test_marina_with_certain_coins_is_gradient_descent():
    estimates, _, _ = run(Marina(RandK(k=6, scaled=True), p=1.0), STREAM)
    assert all(y.tobytes() == x.tobytes() for y, x in zip(estimates, STREAM, strict=True))


def test_coins_of_marina_are_common_to_all_workers_and_fall_as_often_as_they_should():
    channel = Marina(RandK(k=15, scaled=True), seed=5)
    coins = [channel.sends_whole(t, SHAPES) for t in range(4000)]
    assert coins == [
        Marina(RandK(k=15, scaled=True), seed=5).sends_whole(t, SHAPES) for t in range(4000)
    ]
    # p = 1 / (1 + omega) = k / d.
    assert np.mean(coins) == pytest.approx(0.25, abs=5 * math.sqrt(0.25 * 0.75 / 4000))


def test_marina_adds_differences_of_successive_gradients():
    channel = Marina(RandK(k=15, scaled=True), p=0.3, seed=5)
    estimates, _, _ = run(channel, STREAM)
    q = RandK(k=15, scaled=True)
    g = None
    wholes = 0
    for t, x in enumerate(STREAM):
        if t == 0 or channel.sends_whole(t, SHAPES):
            g = x
            wholes += 1
        else:
            payload, _ = q.encode(x - STREAM[t - 1], SHAPES, {}, rng(0, t))
            g = g + q.decode(payload, SHAPES)
        assert estimates[t].tobytes() == g.tobytes()
    assert 1 < wholes < len(STREAM)


# ---- lost messages and lost memories -----------------------------------------------------------


@each_tracked
def test_a_lost_message_is_noticed_and_the_sender_starts_over(name):
    channel = TRACKED[name]
    state, receiver = channel.init(SHAPES), channel.init_receiver(SHAPES)
    for t in range(3):
        payload, state = channel.encode(STREAM[t], SHAPES, state, rng(t))
        _, receiver = channel.receive(payload, SHAPES, receiver)
    _, state = channel.encode(STREAM[3], SHAPES, state, rng(3))  # never arrives
    payload, _ = channel.encode(STREAM[4], SHAPES, state, rng(4))
    with pytest.raises(PayloadError, match="message 4, expected 3"):
        channel.receive(payload, SHAPES, receiver)
    assert channel.next_message(receiver) == 3
    state = channel.resume(state, SHAPES, 3)
    payload, state = channel.encode(STREAM[5], SHAPES, state, rng(5))
    _, receiver = channel.receive(payload, SHAPES, receiver)
    assert channel.next_message(receiver) == channel.next_message(state) == 1


@each_tracked
def test_a_message_that_arrives_twice_is_refused(name):
    channel = TRACKED[name]
    state, receiver = channel.init(SHAPES), channel.init_receiver(SHAPES)
    for t in range(2):
        payload, state = channel.encode(STREAM[t], SHAPES, state, rng(t))
        _, receiver = channel.receive(payload, SHAPES, receiver)
    with pytest.raises(PayloadError, match="message 1, expected 2"):
        channel.receive(payload, SHAPES, receiver)


@each_tracked
def test_a_sender_in_step_goes_on(name):
    channel = TRACKED[name]
    _, states, receivers = run(channel, STREAM[:3])
    expected = channel.next_message(receivers[-1])
    assert channel.resume(states[-1], SHAPES, expected) is states[-1]


@each_tracked
def test_a_receiver_that_missed_messages_can_catch_up(name):
    channel = TRACKED[name]
    state, present = channel.init(SHAPES), channel.init_receiver(SHAPES)
    if name == "marina":
        with pytest.raises(ConfigError, match="cannot be helped"):
            channel.catch_up(state, SHAPES)
        return
    with pytest.raises(ConfigError, match="nothing was sent"):
        channel.catch_up(state, SHAPES)
    for t in range(4):
        payload, state = channel.encode(STREAM[t], SHAPES, state, rng(t))
        _, present = channel.receive(payload, SHAPES, present)
    missed = channel.catch_up(state, SHAPES)
    _, late = channel.receive(missed, SHAPES, channel.init_receiver(SHAPES))
    payload, _ = channel.encode(STREAM[5], SHAPES, state, rng(5))
    a, b = (channel.receive(payload, SHAPES, receiver)[0] for receiver in (present, late))
    assert a.tobytes() == b.tobytes()


# ---- the server's memory -----------------------------------------------------------------------


def test_receivers_keep_one_state_per_client_heard():
    channel = EF21(TopK(k=6))
    receivers = Receivers(channel, SHAPES, senders=4, max_bytes=10_000)
    states = {client: channel.init(SHAPES) for client in (1, 3)}
    for t in range(3):
        for client, state in states.items():
            payload, states[client] = channel.encode(vector(10 * client + t), SHAPES, state, rng(t))
            estimate = receivers.receive(client, payload)
            assert estimate.tobytes() == states[client]["h"].tobytes()
    assert [receivers.next_message(client) for client in range(4)] == [0, 3, 0, 3]
    assert {name.split(".")[0] for name in receivers.state()} == {"1", "3"}
    receivers.forget(3)
    assert receivers.next_message(3) == 0


def test_a_checkpoint_of_receivers_goes_on_where_it_was():
    channel = EControl(TopK(k=6))
    first = Receivers(channel, SHAPES, 3, 10_000)
    state = channel.init(SHAPES)
    for t in range(2):
        payload, state = channel.encode(vector(t), SHAPES, state, rng(t))
        first.receive(2, payload)
    second = Receivers(channel, SHAPES, 3, 10_000)
    second.restore(first.state())
    payload, _ = channel.encode(vector(9), SHAPES, state, rng(9))
    assert second.receive(2, payload).tobytes() == first.receive(2, payload).tobytes()


def test_the_server_keeps_no_more_than_its_bound():
    each = 4 * D + 8
    Receivers(EF21(TopK(k=6)), SHAPES, senders=100, max_bytes=100 * each)
    with pytest.raises(ConfigError, match=f"{each} bytes for each of 101 clients"):
        Receivers(EF21(TopK(k=6)), SHAPES, senders=101, max_bytes=100 * each)
    # Error feedback leaves nothing at the server, for any number of clients.
    Receivers(ErrorFeedback(TopK(k=6)), SHAPES, senders=10**9, max_bytes=0)


def test_a_refused_payload_leaves_the_state_of_its_sender():
    channel = EF21(TopK(k=6))
    receivers = Receivers(channel, SHAPES, 2, 10_000)
    payload, state = channel.encode(vector(), SHAPES, channel.init(SHAPES), rng(0))
    receivers.receive(0, payload)
    payload, _ = channel.encode(vector(1), SHAPES, state, rng(1))
    with pytest.raises(PayloadError):
        receivers.receive(0, payload[:-2])
    assert receivers.next_message(0) == 1
    receivers.receive(0, payload)
    with pytest.raises(ConfigError, match="sender 2"):
        receivers.receive(2, payload)


def test_partial_participation_is_refused_only_where_it_cannot_work():
    shapes, everyone, some = SHAPES, [0, 1, 2], [0, 2]
    for channel, wanted in (
        (TopK(k=3), Participation.ANY),
        (ErrorFeedback(TopK(k=3)), Participation.ANY),
        (EF21(TopK(k=3)), Participation.TRACKED),
        (EF21Sgdm(TopK(k=3)), Participation.TRACKED),
        (EControl(TopK(k=3)), Participation.TRACKED),
        (Diana(Natural()), Participation.TRACKED),
        (Marina(Natural()), Participation.FULL),
    ):
        assert channel.participation is wanted
        receivers = Receivers(channel, shapes, 3, 10**6)
        receivers.check_participants(everyone)
        if wanted is Participation.FULL:
            with pytest.raises(
                ConfigError, match=r"Marina needs every client .* 1 of 3 are missing"
            ):
                receivers.check_participants(some)
        else:
            receivers.check_participants(some)


def test_options_that_do_not_exist_are_refused():
    for make in (
        lambda: ErrorFeedback(TopK(k=1), decay=0.0),
        lambda: ErrorFeedback(TopK(k=1), decay=1.1),
        lambda: EF21(TopK(k=1), first="none"),
        lambda: EF21Sgdm(TopK(k=1), a=0.0),
        lambda: EControl(TopK(k=1), eta=-0.1),
        lambda: EControl(TopK(k=1), eta=1.5),
        lambda: Diana(Natural(), alpha=2.0),
        lambda: Marina(Natural(), p=0.0),
        lambda: Marina(TopK(k=1)).init(SHAPES),
    ):
        with pytest.raises(ConfigError):
            make()


# ---- heterogeneous quadratics ------------------------------------------------------------------

CLIENTS = 5


class Quadratics:
    """f_i(x) = (x - b_i)' A_i (x - b_i) / 2 with different A_i and b_i; the mean has its own x*."""

    def __init__(self, zeta=3.0, d=40, clients=CLIENTS, seed=0):
        r = np.random.default_rng(seed)
        self.d = d
        self.a = []
        for _ in range(clients):
            q = np.linalg.qr(r.standard_normal((d, d)))[0]
            self.a.append(q * np.linspace(0.5, 2.0, d) @ q.T)
        self.b = [zeta * r.standard_normal(d) for _ in range(clients)]
        mean = np.mean(self.a, axis=0)
        right = np.mean([a @ b for a, b in zip(self.a, self.b, strict=True)], axis=0)
        self.optimum = np.linalg.solve(mean, right)
        self.smoothness = float(np.linalg.eigvalsh(mean)[-1])
        self.workers = math.sqrt(np.mean([np.linalg.eigvalsh(a)[-1] ** 2 for a in self.a]))

    def gradients(self, x):
        return [a @ (x - b) for a, b in zip(self.a, self.b, strict=True)]

    def distance(self, x):
        return float(np.linalg.norm(x - self.optimum) / np.linalg.norm(self.optimum))


def descend(problem, channel, gamma, steps, noise=0.0, inside=False, seed=0):
    """Distances to the optimum along x <- x - gamma mean of what arrives."""
    shapes = Shapes.vector(problem.d)
    n = len(problem.a)
    states = [channel.init(shapes) for _ in range(n)]
    receivers = [channel.init_receiver(shapes) for _ in range(n)]
    x = np.zeros(problem.d)
    r = np.random.default_rng(seed)
    distances = []
    for t in range(steps):
        arrived = np.zeros(problem.d)
        for i, g in enumerate(problem.gradients(x)):
            g = g + noise * r.standard_normal(problem.d)
            g = (gamma * g if inside else g).astype(np.float32)
            payload, states[i] = channel.encode(g, shapes, states[i], rng(seed, t, i))
            estimate, receivers[i] = channel.receive(payload, shapes, receivers[i])
            arrived += estimate / n
        x = x - (arrived if inside else gamma * arrived)
        distances.append(problem.distance(x))
    return np.array(distances)


PROBLEM = Quadratics()


def test_error_feedback_stalls_on_heterogeneous_clients():
    """At the optimum the gradients of clients are not zero, so what is dropped is not either."""
    gamma = 0.1
    floor = descend(PROBLEM, ErrorFeedback(TopK(k=2)), gamma, 300, inside=True)[-100:].mean()
    assert floor > 0.01
    # Half the step, half the floor: it is the step size that holds it up.
    lower = descend(PROBLEM, ErrorFeedback(TopK(k=2)), gamma / 4, 900, inside=True)[-100:].mean()
    assert lower < floor / 2


LINEAR = {
    "ef21": (EF21(TopK(k=4)), 0.1, 500),
    "ef21-compressed": (EF21(TopK(k=4), first="compressed"), 0.1, 500),
    "ef21-sgdm": (EF21Sgdm(TopK(k=4), a=0.5), 0.1, 500),
    "econtrol": (EControl(TopK(k=4), eta=0.05), 0.1, 500),
    "diana": (Diana(RandK(k=8, scaled=True)), 0.2, 400),
    "diana-qsgd": (Diana(Qsgd(3, None)), 0.2, 400),
    "marina": (Marina(RandK(k=8, scaled=True), seed=1), 0.2, 400),
}


@pytest.mark.parametrize("name", LINEAR)
def test_controlled_methods_converge_where_error_feedback_stalls(name):
    channel, gamma, steps = LINEAR[name]
    distances = descend(PROBLEM, channel, gamma, steps)
    assert distances[-1] < 2e-5  # the gradients travel as float32
    # Linear: the first half already squares the reduction up to a factor.
    assert distances[steps // 3] < 0.1


def test_plain_quantisation_of_heterogeneous_gradients_does_not_converge():
    plain = descend(PROBLEM, RandK(k=8, scaled=True), 0.2, 400)
    assert plain[-200:].mean() > 0.05


def test_econtrol_is_stable_where_error_feedback_is_not():
    """One step size, one compressor: the floors differ by orders of magnitude."""
    controlled, gamma, steps = LINEAR["econtrol"]
    assert controlled.compressor == TopK(k=4)
    ef = descend(PROBLEM, ErrorFeedback(controlled.compressor), gamma, steps, inside=True)
    assert 1e-3 * ef[-200:].mean() > 2e-5  # where EControl comes to, see above


@pytest.mark.parametrize("k", [pytest.param(2, marks=pytest.mark.slow), 10])
def test_the_step_size_of_ef21s_theory_converges(k):
    """gamma = 1 / (L + L~ sqrt(b / th)), th = 1 - sqrt(1 - delta), b = (1 - delta) / th."""
    delta = k / PROBLEM.d
    th = 1 - math.sqrt(1 - delta)
    gamma = 1 / (PROBLEM.smoothness + PROBLEM.workers * math.sqrt((1 - delta) / th / th))
    steps = int(12 / (0.5 * gamma))
    assert descend(PROBLEM, EF21(TopK(k=k)), gamma, steps)[-1] < 0.01


def test_the_step_sizes_of_diana_and_marina_converge():
    omega = RandK(k=8, scaled=True).variance(Shapes.vector(PROBLEM.d))
    for channel, gamma in (
        (Diana(RandK(k=8, scaled=True)), 1 / (PROBLEM.workers * (1 + 6 * omega / CLIENTS))),
        (
            Marina(RandK(k=8, scaled=True)),
            1 / (PROBLEM.workers * (1 + math.sqrt(omega * omega / CLIENTS))),
        ),
    ):
        steps = int(12 / (0.5 * gamma))
        assert descend(PROBLEM, channel, gamma, steps)[-1] < 0.01


SKEWED = np.array([[2, 0], [0, 1], [-2, -1]], dtype=np.float64)  # mean zero, not symmetric


def skewed_floor(channel, workers, gamma=0.02, steps=2500):
    """Stationary |x|^2 of |x|^2 / 2 in the plane, with skewed noise in every worker's gradient."""
    shapes = Shapes.vector(2)
    r = np.random.default_rng(0)
    x = np.zeros(2)
    states = [channel.init(shapes) for _ in range(workers)]
    receivers = [channel.init_receiver(shapes) for _ in range(workers)]
    energies = []
    for _ in range(steps):
        noise = SKEWED[r.integers(0, 3, workers)]
        arrived = np.zeros(2)
        for i in range(workers):
            g = (x + noise[i]).astype(np.float32)
            payload, states[i] = channel.encode(g, shapes, states[i], r)
            estimate, receivers[i] = channel.receive(payload, shapes, receivers[i])
            arrived += estimate / workers
        x = x - gamma * arrived
        energies.append(float(x @ x))
    return np.mean(energies[steps // 2 :])


@pytest.mark.slow
def test_noise_averages_out_under_econtrol_and_not_under_ef21():
    """With top-1 and skewed noise, EF21 keeps a bias that no number of workers removes."""
    econtrol, ef21 = EControl(TopK(k=1), eta=0.1), EF21(TopK(k=1))
    floors = {(c, n): skewed_floor(c, n) for c in (econtrol, ef21) for n in (16, 64)}
    # Four times the workers: a quarter of sigma^2 / n, up to the noise of the measurement.
    assert floors[econtrol, 64] < floors[econtrol, 16] / 2.5
    assert floors[ef21, 64] > floors[ef21, 16] / 2
    assert floors[ef21, 64] > 4 * floors[econtrol, 64]


@pytest.mark.slow
def test_momentum_lowers_the_floor_that_noise_gives_ef21():
    noisy = {
        name: descend(PROBLEM, channel, 0.02, 1500, noise=3.0)[-500:].mean()
        for name, channel in (("ef21", EF21(TopK(k=2))), ("sgdm", EF21Sgdm(TopK(k=2), a=0.1)))
    }
    assert noisy["sgdm"] < 0.7 * noisy["ef21"]


def test_vectors_of_all_kinds_are_tracked():
    for kind, x in vectors(D).items():
        for channel in (EF21(TopK(k=6)), EControl(TopK(k=6)), Diana(Natural())):
            estimates, _, _ = run(channel, [x] * 60)
            assert relative_error(estimates[-1], x) < 1e-2, kind
