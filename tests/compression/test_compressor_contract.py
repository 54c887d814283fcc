"""What every member of the config group promises, whatever it does."""

import math

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord
from many_cases import for_each
from members import (
    CHANNELS,
    COMPRESSORS,
    MEMBERS,
    NAMES,
    SHAPES,
    relative_error,
    vectors,
)

from fl.compression import PayloadError, Shapes, integers
from fl.errors import ConfigError

each_name = pytest.mark.parametrize("name", NAMES)
each_channel = pytest.mark.parametrize("name", CHANNELS)
each_compressor = pytest.mark.parametrize("name", COMPRESSORS)

D = SHAPES.size
HEADER = 6
X = vectors(D)["gaussian"]


def send(name, x, shapes=SHAPES, seed=0, state=None):
    channel = MEMBERS[name]
    state = channel.init(shapes) if state is None else state
    return channel.encode(x, shapes, state, np.random.default_rng(seed))


def carried(name, x, shapes=SHAPES, seed=0):
    payload, _ = send(name, x, shapes, seed)
    channel = MEMBERS[name]
    return channel.receive(payload, shapes, channel.init_receiver(shapes))[0]


# ---- the config folder -----------------------------------------------------------------------


# ---- round trip ------------------------------------------------------------------------------


@each_channel
@for_each("kind", vectors(4))
def test_round_trip_keeps_shape_and_type(name, kind):
    y = carried(name, vectors(D)[kind])
    assert y.shape == (D,)
    assert y.dtype == np.float32
    assert np.isfinite(y).all()


@each_channel
@for_each("size", [1, 2, 7, 8, 9, 1000])
def test_any_size_of_vector_works(name, size):
    x = vectors(size)["gaussian"]
    for shapes in (Shapes.vector(size), Shapes(((1, size),)), Shapes(((0,), (size, 1)))):
        assert carried(name, x, shapes).shape == (size,)


@each_channel
def test_large_vectors_take_the_same_path_block_by_block(name):
    # More entries than the blocks the kernels work in, and not a multiple of anything.
    shapes = Shapes(((300, 401), (12345,)))
    x = vectors(shapes.size)["gaussian"]
    payload, _ = send(name, x, shapes)
    least, most = MEMBERS[name].length(shapes)
    assert least <= len(payload) <= most
    y = carried(name, x, shapes)
    delta = getattr(MEMBERS[name], "contraction", lambda _: None)(shapes)
    if delta is not None:
        assert relative_error(y, x) <= (1 - delta) * 1.05 + 1e-6


@each_channel
def test_input_and_state_are_not_changed(name):
    x = X.copy()
    x.flags.writeable = False
    state = MEMBERS[name].init(SHAPES)
    for value in state.values():
        value.flags.writeable = False
    payload, after = send(name, x, state=state)
    receiver = MEMBERS[name].init_receiver(SHAPES)
    for value in (*after.values(), *receiver.values()):
        value.flags.writeable = False
    MEMBERS[name].receive(payload, SHAPES, receiver)
    MEMBERS[name].encode(x, SHAPES, after, np.random.default_rng(1))
    assert np.array_equal(x, X)


@each_channel
def test_same_seed_gives_the_same_payload(name):
    first, second = send(name, X, seed=5), send(name, X, seed=5)
    assert first[0] == second[0]
    assert first[1].keys() == second[1].keys()
    assert all(np.array_equal(first[1][key], second[1][key]) for key in first[1])


@each_channel
def test_decoding_twice_gives_the_same_numbers(name):
    assert carried(name, X).tobytes() == carried(name, X).tobytes()


@each_channel
def test_zeros_arrive_as_zeros(name):
    if name == "signsgd":
        pytest.skip("one bit and no scale cannot say zero")
    assert not carried(name, np.zeros(D, dtype=np.float32)).any()


EQUIVARIANT = set(CHANNELS) - {
    "signsgd",  # no scale at all
    "fp16",  # small numbers are flushed
    "threshold",  # an absolute bound
    "spsa_byte",  # an absolute range of projections; below
}


@pytest.mark.parametrize("name", sorted(EQUIVARIANT))
def test_scaling_by_a_power_of_two_commutes(name):
    assert np.array_equal(carried(name, 8 * X), 8 * carried(name, X))


@each_channel
def test_states_live_in_a_flower_record(name):
    """Context.state holds ArrayRecords: what comes back must go on as if it had never left."""
    state = send(name, X)[1]
    record = ArrayRecord({key: Array(np.asarray(value)) for key, value in state.items()})
    back = {key: array.numpy() for key, array in record.items()}
    assert all(value.dtype.kind in "fi" for value in back.values())
    assert send(name, X, seed=3, state=back)[0] == send(name, X, seed=3, state=state)[0]


# ---- bad input -------------------------------------------------------------------------------


@each_channel
@for_each("bad", [np.nan, np.inf, -np.inf])
def test_entries_that_are_not_finite_are_refused(name, bad):
    for at in (0, D // 2, D - 1):
        x = X.copy()
        x[at] = bad
        with pytest.raises(ConfigError, match="finite"):
            send(name, x)


@each_channel
def test_wrong_shape_or_type_is_refused(name):
    for x in (X[:-1], X.astype(np.float64), X.reshape(2, -1), np.repeat(X, 2)[::2]):
        with pytest.raises(ConfigError, match="shape"):
            send(name, x)


@each_channel
def test_payload_of_another_model_is_refused(name):
    payload, _ = send(name, X)
    other = Shapes(((24, 16), (16,), (3, 3, 4, 5), (8,), ()))
    with pytest.raises(PayloadError):
        MEMBERS[name].receive(payload, other, MEMBERS[name].init_receiver(other))


def test_payload_of_another_format_is_refused():
    formats = {}
    for name in CHANNELS:
        formats.setdefault(send(name, X)[0][0], name)
    for name in CHANNELS:
        channel = MEMBERS[name]
        own = send(name, X)[0][0]
        for fmt, other in formats.items():
            if fmt != own:
                with pytest.raises(PayloadError):
                    channel.receive(send(other, X)[0], SHAPES, channel.init_receiver(SHAPES))


# ---- length ----------------------------------------------------------------------------------

K = 6  # round(0.01 * 588)
INDICES = 1 + 5  # kind of positions; code and length of the gaps
CHUNKS = {"matrix": 384, "convolution": 180}  # one chunk each: 24 x 16 and 3 x 60 fit 64 x 64
VECTORS = 24  # entries of one-dimensional tensors and scalars
LAYERS = 5


def up(bits):
    return math.ceil(bits / 8)


# Bytes after the first header, by the formulas of the methods' table: payload bits, plus what says
# how long the parts are.
FORMULAS = {
    "none": 4 * D,
    "randk": 8 + 4 * K,
    "randk_block": 8 + 4 * K,
    "randk_unbiased": 8 + 4 * 59,
    "shrunk_randk": 8 + 4 * 59,
    "block_topk": up(K * 10) + 4 * K,  # one block of 1024, not full
    "natural": up(D) + D,
    "terngrad": up(2 * D) + 4 * LAYERS,
    "terngrad_unclipped": up(2 * D) + 4 * LAYERS,
    "signsgd": up(D),
    "sign": up(D) + 4 * LAYERS,
    "sign_l2": up(D) + 4 * LAYERS,
    "ef_sign": up(D) + 4 * LAYERS,
    "int8": D + 4,
    "int8_nearest": D + 4,
    "codebook_int8": D + 256 * 4,
    "codebook_quantile": D + 256 * 4,
    "fp16": 2 * D,
    "bf16": 2 * D,
    "bf16_stochastic": 2 * D,
    "fp8_e4m3": D + 4 * LAYERS,
    "fp8_e5m2": D + 4 * LAYERS,
    "e3m0": up(4 * D) + 4 * LAYERS,
    # Rank 2 of 24 x 16 is 80 floats, 40 in a factor, and of 3 x 60 it is 126: both are fewer.
    "powersgd": 1 + 4 * (2 * (24 + 16) + 2 * (3 + 60) + VECTORS),
    "lowrank": 1 + 4 * (2 * (24 + 16) + 2 * (3 + 60) + VECTORS),
    "demo": up(32 * 9) + up(32 * 8) + 4 * (2 * 32 + VECTORS),
    "dct_topk": 4 + up(32 * 9) + up(32 * 8) + HEADER + 2 * (2 * 32 + VECTORS),
    "count_sketch": 4 * 5 * 2000,
    "spsa_byte": 8 + 1,
}
# The first message of these is h itself; then a payload of the inner compressor follows.
TRACKED = {
    "ef21": "topk",
    "ef21_of_topk": "topk",
    "ef21_sign": "sign",
    "ef21_sgdm": "topk",
    "econtrol": "topk",
    "diana": "qsgd",
}
DATA_DEPENDENT = {
    "grass",
    "grass_sampled",
    "topk",
    "topk_by_tensor",
    "topk_int8",
    "ef_topk",
    "ef_topk_and_int8",
    "ef_topk_int8",
    "threshold",
    "qsgd",
    "qsgd_sparse",
    "induced",
    "marina",
    "sparse_loco",
    *TRACKED,
}


def test_a_preset_is_what_its_parts_are_on_the_command_line():
    assert MEMBERS["ef_topk_int8"] == MEMBERS["ef_topk_and_int8"]
    assert MEMBERS["ef21"] == MEMBERS["ef21_of_topk"]


def test_every_channel_has_a_length_to_check():
    assert set(CHANNELS) == set(FORMULAS) | DATA_DEPENDENT


@pytest.mark.parametrize("name", FORMULAS)
@for_each("kind", ["gaussian", "one-hot"])
def test_length_is_the_formula(name, kind):
    payload, _ = send(name, vectors(D)[kind])
    assert len(payload) == HEADER + FORMULAS[name]
    assert MEMBERS[name].length(SHAPES) == (len(payload), len(payload))


@pytest.mark.parametrize("name", sorted(DATA_DEPENDENT))
@for_each("kind", vectors(4))
def test_length_stays_within_its_bounds(name, kind):
    payload, state = send(name, vectors(D)[kind])
    second, _ = send(name, vectors(D, 1)[kind], state=state)
    least, most = MEMBERS[name].length(SHAPES)
    assert least <= len(payload) <= most
    assert least <= len(second) <= most


def coded_support(y):
    """Bytes of the positions of y, by the formula of `indices`."""
    gaps = np.diff(np.flatnonzero(y), prepend=-1)
    return min(1 + 5 + min(integers.encoded_lengths(gaps).values()), 1 + up(y.size))


@for_each("kind", ["gaussian", "laplace", "heavy"])
def test_lengths_that_depend_on_the_vector_are_their_formulas(kind):
    x = vectors(D)[kind]
    for name in ("topk", "topk_by_tensor", "threshold"):
        y = carried(name, x)
        k = np.count_nonzero(y)
        assert len(send(name, x)[0]) == 10 + coded_support(y) + 4 * k
    y = carried("topk_int8", x)
    assert len(send("topk_int8", x)[0]) == HEADER + 4 + 4 + coded_support(y) + HEADER + 4 + K
    y = carried("qsgd_sparse", x)
    n = np.count_nonzero(y)
    ones = integers.encode(np.ones(n, dtype=np.int64))
    assert len(send("qsgd_sparse", x)[0]) == 7 + 4 + 4 + coded_support(y) + up(n) + len(ones)


@pytest.mark.parametrize("name", TRACKED)
def test_tracked_messages_cost_eleven_bytes_more_than_their_content(name):
    payload, state = send(name, X)
    whole = payload[HEADER] == 0
    inner, _ = send(TRACKED[name], X)
    assert len(payload) == HEADER + 5 + (4 * D if whole else len(inner))
    second, _ = send(name, X, state=state)
    assert len(second) <= HEADER + 5 + MEMBERS[TRACKED[name]].length(SHAPES).most


# ---- constants -------------------------------------------------------------------------------

WITH_DELTA = [n for n in COMPRESSORS if MEMBERS[n].contraction(SHAPES) is not None]
WITH_OMEGA = [n for n in COMPRESSORS if MEMBERS[n].variance(SHAPES) is not None]
SMALL = Shapes(((6, 8), (16,)))


def draws(name, x, shapes, count):
    """Decoded vectors of independent messages, shape (count, d)."""
    channel = MEMBERS[name]
    r = np.random.default_rng(11)
    state = channel.init(shapes)
    rows = [channel.decode(channel.encode(x, shapes, state, r)[0], shapes) for _ in range(count)]
    return np.array(rows, dtype=np.float64)


def is_deterministic(name):
    return send(name, X, seed=0)[0] == send(name, X, seed=1)[0]


def test_the_expected_members_declare_constants():
    assert {"topk", "randk", "sign", "bf16", "e3m0", "dct_topk", "topk_int8"} <= set(WITH_DELTA)
    assert {"randk_unbiased", "qsgd", "natural", "terngrad_unclipped", "int8", "induced"} <= set(
        WITH_OMEGA
    )
    assert not {"sign_l2", "signsgd", "count_sketch", "terngrad"} & set(WITH_DELTA)


@pytest.mark.parametrize("name", WITH_DELTA)
@for_each("kind", vectors(4))
def test_declared_contraction_holds(name, kind):
    shapes = SMALL
    delta = MEMBERS[name].contraction(shapes)
    if delta is None:
        pytest.skip("the constant does not exist for these shapes")
    for seed in range(3):
        x = vectors(shapes.size, seed)[kind]
        ratios = np.sum((draws(name, x, shapes, 2 if is_deterministic(name) else 200) - x) ** 2, 1)
        ratios /= np.sum(x.astype(np.float64) ** 2)
        error = ratios.std(ddof=1) / math.sqrt(ratios.size)
        assert ratios.mean() <= (1 - delta) + 4 * error + 1e-6


@pytest.mark.parametrize("name", WITH_OMEGA)
@for_each("kind", ["gaussian", "heavy", "sparse"])
def test_declared_variance_holds_without_bias(name, kind):
    check_unbiased(name, kind, 1000)


@pytest.mark.slow
@pytest.mark.parametrize("name", WITH_OMEGA)
@pytest.mark.parametrize(
    ("kind", "count"), [("gaussian", 100_000), ("heavy", 20_000), ("one-hot", 20_000)]
)
def test_declared_variance_holds_without_bias_in_many_draws(name, kind, count):
    check_unbiased(name, kind, count)


def check_unbiased(name, kind, count):
    shapes = SMALL
    x = vectors(shapes.size)[kind]
    y = draws(name, x, shapes, count)
    deviation = y.mean(axis=0) - x
    error = y.std(axis=0, ddof=1) / math.sqrt(count)
    # Rounding of one float32, and probabilities in steps of 2^-16 of a level of at most max|x|.
    slack = 2e-5 * np.abs(x).max()
    # Bernstein's term: an entry that is rarely sent has too few hits to show its own deviation.
    rare = np.abs(y).max() / count
    # The sum over coordinates is one test within 4 standard errors; each of the 64 gets 5.
    assert np.all(np.abs(deviation) <= 5 * (error + rare) + slack)
    total = y.sum(axis=1)
    total_error = total.std(ddof=1) / math.sqrt(count)
    assert abs(total.mean() - x.sum(dtype=np.float64)) <= 4 * total_error + 64 * slack
    omega = MEMBERS[name].variance(shapes)
    ratios = np.sum((y - x) ** 2, axis=1) / np.sum(x.astype(np.float64) ** 2)
    assert ratios.mean() <= omega + 4 * ratios.std(ddof=1) / math.sqrt(count) + 1e-6
