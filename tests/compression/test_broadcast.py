"""A broadcast: whoever gets a message holds what the sender thinks, whatever was missed before."""

import numpy as np
import pytest
from many_cases import for_each

from fl.compression import (
    EF21,
    Broadcast,
    Cast,
    Diana,
    ErrorFeedback,
    Identity,
    PayloadError,
    Qsgd,
    RandK,
    Shapes,
    Shrunk,
    Sign,
    TopK,
    UniformQuantizer,
    receive_parts,
)
from fl.errors import ConfigError
from fl.randomness import generator

SHAPES = Shapes(((30, 10), (20,)))
D = SHAPES.size


def walk(steps, seed=0, scale=0.1):
    """Models that move a little every round."""
    r = np.random.default_rng(seed)
    w = r.standard_normal(D)
    for _ in range(steps):
        w = w + scale * r.standard_normal(D)
        yield w.astype(np.float32)


def take(channel, state, broadcast, known):
    parts = broadcast.parts(known)
    return receive_parts(channel, SHAPES, state, parts, broadcast.version)


@pytest.mark.parametrize("first", ["dense", "compressed"])
@for_each("density", [0.02, 0.3, 1.0])
def test_receivers_that_miss_messages_hold_what_the_others_hold(density, first):
    channel = EF21(TopK(density=density), first=first)
    broadcast = Broadcast(channel, SHAPES)
    rng = np.random.default_rng(1)
    states = [channel.init_receiver(SHAPES) for _ in range(6)]
    known = [None] * 6
    for w in walk(40):
        broadcast.send(w)
        for i in range(6):
            if rng.random() < [1.0, 0.7, 0.4, 0.2, 0.1, 0.05][i]:
                vector, states[i] = take(channel, states[i], broadcast, known[i])
                np.testing.assert_array_equal(vector, broadcast.held)
                if rng.random() < 0.7:  # otherwise its reply is lost: the server knows less
                    known[i] = broadcast.version


def test_it_is_error_feedback_on_the_changes_of_the_model():
    # DoubleSqueeze: p = (w_t - w_{t-1}) + e, sends C(p), e = p - C(p); then w_t - h_t = e_t.
    compressor = TopK(density=0.1)
    broadcast = Broadcast(EF21(compressor, first="dense"), SHAPES)
    feedback = ErrorFeedback(compressor)
    state, before = feedback.init(SHAPES), None
    for t, w in enumerate(walk(10)):
        broadcast.send(w)
        if t:
            change = w.astype(np.float64) - before
            payload, state = feedback.encode(
                change.astype(np.float32), SHAPES, state, generator(0, "x", t)
            )
            np.testing.assert_allclose(w - broadcast.held, state["e"], atol=2e-6)
            inner = broadcast.parts(broadcast.version - 1)[0][11:]
            np.testing.assert_allclose(
                compressor.decode(inner, SHAPES), compressor.decode(payload, SHAPES), atol=2e-6
            )
        before = w


def test_the_estimate_converges_to_a_model_that_stands_still():
    # |w - h|^2 shrinks by 1 - delta = 1 - k/d a message; a model that is the same is sent once,
    # so it is moved by less than anything that matters.
    channel = EF21(TopK(density=0.1), first="compressed")
    broadcast = Broadcast(channel, SHAPES)
    (w,) = walk(1)
    errors = []
    for i in range(12):
        broadcast.send(w * np.float32(1 + 1e-6 * i))
        errors.append(np.sum((w - broadcast.held).astype(np.float64) ** 2))
    start = np.sum(w.astype(np.float64) ** 2)
    for i, error in enumerate(errors):
        assert error <= start * 0.9 ** (i + 1) + 1e-6


def test_what_is_sent_is_the_shorter_of_missing_messages_and_the_whole():
    channel = EF21(TopK(density=0.1), first="dense")
    broadcast = Broadcast(channel, SHAPES)
    whole = 11 + 4 * D
    for t, w in enumerate(walk(30)):
        broadcast.send(w)
        assert len(broadcast.parts(None)) == 1
        assert sum(map(len, broadcast.parts(None))) == whole
        if t:
            one = sum(map(len, broadcast.parts(t - 1)))
            assert one < whole / 3
    assert sum(map(len, broadcast.parts(27))) == pytest.approx(2 * one, rel=0.2)
    assert sum(map(len, broadcast.parts(3))) == whole
    kept = sum(len(payload) for _, payload in broadcast._log)
    assert kept <= whole, "the server keeps no more messages than it would ever send"


def test_the_same_model_is_sent_once():
    broadcast = Broadcast(EF21(TopK(density=0.1)), SHAPES)
    (w,) = walk(1)
    broadcast.send(w)
    broadcast.send(w.copy())
    assert broadcast.version == 0
    assert broadcast.parts(0) == ()


@pytest.mark.parametrize("channel", [Identity(), Cast("bf16"), UniformQuantizer(bits=8)])
def test_rounded_messages_can_be_decoded_alone(channel):
    broadcast = Broadcast(channel, SHAPES, seed=3)
    for w in walk(3):
        broadcast.send(w)
        vector, state = take(channel, {}, broadcast, None)
        np.testing.assert_array_equal(vector, broadcast.held)
        assert state == {}
        assert np.abs(vector - w).max() <= np.abs(w).max() / 127


def test_random_numbers_are_the_seeds():
    payloads = []
    for seed in (0, 0, 1):
        broadcast = Broadcast(UniformQuantizer(bits=4), SHAPES, seed=seed)
        broadcast.send(next(walk(1)))
        payloads.append(broadcast.parts(None))
    assert payloads[0] == payloads[1] != payloads[2]


def test_a_receiver_without_memory_refuses_a_change_and_says_what_it_needs():
    channel = EF21(TopK(density=0.1))
    broadcast = Broadcast(channel, SHAPES)
    for w in walk(3):
        broadcast.send(w)
    with pytest.raises(PayloadError, match="start over"):
        take(channel, channel.init_receiver(SHAPES), broadcast, 1)
    with pytest.raises(PayloadError, match="holds version -1 of the model"):
        receive_parts(channel, SHAPES, channel.init_receiver(SHAPES), (), broadcast.version)


@pytest.mark.parametrize(
    ("channel", "words"),
    [
        (TopK(density=0.1), "compressor@downlink=ef21"),
        (Sign("l1"), "replace the model"),
        (ErrorFeedback(TopK(density=0.1)), "nobody's model"),
        (Diana(Qsgd()), "gradients of many senders"),
        (EF21(RandK(density=0.1, scaled=True)), "Shrunk"),
    ],
)
def test_what_cannot_carry_a_broadcast_is_refused_with_a_reason(channel, words):
    with pytest.raises(ConfigError, match=words):
        Broadcast(channel, SHAPES)


def test_an_unbiased_compressor_carries_it_when_shrunk():
    broadcast = Broadcast(EF21(Shrunk(RandK(density=0.1, scaled=True))), SHAPES)
    for w in walk(20):
        broadcast.send(w)
    assert np.linalg.norm(w - broadcast.held) < np.linalg.norm(w)


def test_mutated_messages_are_payload_errors_and_leave_the_state():
    channel = EF21(TopK(density=0.1))
    broadcast = Broadcast(channel, SHAPES)
    state = channel.init_receiver(SHAPES)
    for w in walk(2):
        broadcast.send(w)
        _, state = take(channel, state, broadcast, None)
    before = {name: value.copy() for name, value in state.items()}
    broadcast.send(next(walk(1, seed=5)))
    (part,) = broadcast.parts(1)
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(500):
        data = bytearray(part)
        for at in rng.integers(0, len(data), size=3):
            data[at] = rng.integers(256)
        damaged = bytes(data[: rng.integers(len(data) + 1)]) if rng.random() < 0.5 else bytes(data)
        try:
            vector, _ = receive_parts(channel, SHAPES, state, (damaged,), broadcast.version)
        except PayloadError:
            refused += 1
        else:
            assert np.isfinite(vector).all()
    assert refused > 250
    for name, value in before.items():
        np.testing.assert_array_equal(state[name], value)
