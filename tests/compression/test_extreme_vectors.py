"""What an encoder accepts its decoder accepts, however large, small or mixed the entries are."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from many_cases import for_each
from members import CHANNELS, MEMBERS

from fl.compression import PowerSgd, Qsgd, RandK, Shapes, Shrunk, UniformQuantizer
from fl.errors import ConfigError

SHAPES = Shapes(((4, 6), (3,), (2, 5), ()))
D = SHAPES.size
MOST = float(np.finfo(np.float32).max)
EDGES = [0.0, 1e-45, float(np.finfo(np.float32).tiny), 1e-19, 1.0, 2.0**64, 1e30, 1e37, 1e38, MOST]

each_channel = pytest.mark.parametrize("name", CHANNELS)
entries = st.sampled_from([sign * edge for edge in EDGES for sign in (1, -1)]) | st.floats(
    width=32, allow_nan=False, allow_infinity=False
)
rows = arrays(np.float32, D, elements=entries)


def full(value):
    return np.full(D, value, dtype=np.float32)


@each_channel
@settings(max_examples=40, deadline=None, derandomize=True)
@given(messages=st.lists(rows, min_size=1, max_size=3), seed=st.integers(0, 9))
def test_what_is_encoded_can_be_decoded_and_what_cannot_is_refused(name, messages, seed):
    check(name, messages, seed)


@each_channel
@for_each("edge", EDGES)
def test_vectors_of_one_magnitude_can_be_decoded_or_are_refused(name, edge):
    signs = np.where(np.arange(D) % 2, np.float32(1), np.float32(-1))
    one = full(0.0)
    one[5] = edge
    for x in (full(edge), full(edge) * signs, one):
        check(name, [x, -x, x], seed=0)


def check(name, messages, seed):
    channel = MEMBERS[name]
    state, receiver = channel.init(SHAPES), channel.init_receiver(SHAPES)
    rng = np.random.default_rng(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # an overflow that nobody has thought of
        for x in messages:
            try:
                payload, state = channel.encode(x, SHAPES, state, rng)
            except ConfigError:
                return
            y, receiver = channel.receive(payload, SHAPES, receiver)
            assert np.isfinite(y).all()


@each_channel
def test_entries_up_to_a_ten_thousandth_of_the_root_of_the_largest_number_are_never_refused(name):
    limit = 5e4 if name == "fp16" else 1e15
    x = (limit * np.random.default_rng(0).uniform(-1, 1, D)).astype(np.float32)
    channel = MEMBERS[name]
    state = channel.init(SHAPES)
    for message in range(5):
        _, state = channel.encode((-1) ** message * x, SHAPES, state, np.random.default_rng(0))


@pytest.mark.parametrize(
    "compressor",
    [RandK(k=10, scaled=True), Shrunk(RandK(k=10, scaled=True))],
    ids=["rand", "shrunk"],
)
def test_entries_that_scaling_would_make_infinite_are_refused_by_the_encoder(compressor):
    shapes = Shapes.vector(1000)
    x = np.full(1000, 1e37, dtype=np.float32)  # d / k is 100, and float32 ends at 3.4e38
    with pytest.raises(ConfigError, match=r"magnitude 1e\+37.*exceed float32; clip"):
        compressor.encode(x, shapes, {}, np.random.default_rng(0))
    payload, _ = compressor.encode(x / 100, shapes, {}, np.random.default_rng(0))
    assert np.isfinite(compressor.decode(payload, shapes)).all()


@pytest.mark.parametrize(
    "make", [lambda b: UniformQuantizer(bits=b), lambda b: Qsgd(levels=2**b - 3)]
)
@for_each("bits", range(2, 16))
def test_the_top_level_of_the_largest_scale_is_finite(make, bits):
    # In float32, levels times (scale / levels) can exceed the scale.
    compressor, x = make(bits), full(0.0)
    x[7] = MOST
    payload, _ = compressor.encode(x, SHAPES, compressor.init(SHAPES), np.random.default_rng(0))
    y = compressor.decode(payload, SHAPES)
    assert np.isfinite(y).all()
    assert y[7] == pytest.approx(MOST, rel=1e-6)


def test_the_subspace_of_powersgd_does_not_depend_on_the_magnitude_of_the_last_message():
    powersgd = PowerSgd(rank=2, min_compression=0)
    x = np.random.default_rng(0).standard_normal(D).astype(np.float32)
    for scale in (2.0**66, 2.0**-66):
        state, reference = powersgd.init(SHAPES), powersgd.init(SHAPES)
        for _ in range(3):
            rng = np.random.default_rng(0)
            large, state = powersgd.encode(x * np.float32(scale), SHAPES, state, rng)
            usual, reference = powersgd.encode(x, SHAPES, reference, rng)
        np.testing.assert_array_equal(
            powersgd.decode(large, SHAPES), powersgd.decode(usual, SHAPES) * np.float32(scale)
        )
