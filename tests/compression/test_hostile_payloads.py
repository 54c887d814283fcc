"""What a sender may not be able to do with bytes: raise anything else, or use much memory."""

import contextlib
import re
import struct
import tracemalloc

import numpy as np
import pytest
from many_cases import for_each
from members import CHANNELS, MEMBERS, SHAPES, vectors

from fl.compression import (
    EF21,
    CountSketch,
    DecoupledMomentum,
    Demo,
    Diana,
    Identity,
    JustOneByte,
    OneBitAdam,
    OneByteSpsa,
    PayloadError,
    PowerSgd,
    Qsgd,
    RandK,
    Shapes,
    TernGrad,
    TopK,
    UniformQuantizer,
    integers,
)
from fl.compression.wire import Reader

X = vectors(SHAPES.size)["gaussian"]
SPARSE = vectors(SHAPES.size)["sparse"]


def channel_target(channel):
    """(payloads that are right, what reads them): at the first message and at a later one."""
    state, receiver = channel.init(SHAPES), channel.init_receiver(SHAPES)
    payloads = []
    for seed, x in enumerate((X, SPARSE, vectors(SHAPES.size, 7)["heavy"])):
        payload, state = channel.encode(x, SHAPES, state, np.random.default_rng(seed))
        payloads.append(payload)
    for payload in payloads[:-1]:
        _, receiver = channel.receive(payload, SHAPES, receiver)
    readers = [
        lambda data: channel.receive(data, SHAPES, channel.init_receiver(SHAPES))[0],
        lambda data: channel.receive(data, SHAPES, receiver)[0],
    ]
    return payloads, readers


def sums_target():
    ternary = TernGrad(clip=None)
    shared = {"shared": ternary.scalers(X, SHAPES)}
    encoded = [ternary.encode(X, SHAPES, shared, np.random.default_rng(i))[0] for i in range(5)]
    payload = ternary.encode_sums(encoded, SHAPES)
    return [payload], [lambda data: ternary.decode_sums(data, SHAPES, 5)]


def replicated_target(rule):
    worker, server = rule.init_worker(SHAPES), rule.init_server(SHAPES)
    r = np.random.default_rng(0)
    payloads = []
    readers = []
    for _ in range(2):
        up = [rule.send(X, SHAPES, worker, r)[0] for _ in range(2)]
        before = server
        readers.append(lambda data, s=before, u=up[0]: combined(rule, [data, u], s))
        down, server = rule.combine(up, SHAPES, server, r)
        readers.append(lambda data, s=worker: rule.apply(X, data, SHAPES, s)[0])
        payloads += [up[0], down]
        _, worker = rule.apply(X, down, SHAPES, worker)
    return payloads, readers


def combined(rule, payloads, server):
    """What a worker makes of the server's message; the server must not pass on what stops it."""
    r = np.random.default_rng(0)
    down, _ = rule.combine(payloads, SHAPES, server, r)
    step = {"step": server["step"]}
    return rule.apply(X, down, SHAPES, {**rule.init_worker(SHAPES), **step})[0]


def demo_target():
    demo = Demo(k=4, chunk=8, vectors=True)
    payload, _ = demo.encode(X, SHAPES, {}, np.random.default_rng(0))
    return [payload], [lambda data: demo.mean_over_senders([payload, data], SHAPES, sign=False)]


# Formats and branches that no member of the config group takes.
EXTRA = {
    "qsgd-wide": lambda: channel_target(Qsgd(levels=1000, bucket=64)),
    "int12": lambda: channel_target(UniformQuantizer(bits=12, bucket=100)),
    "int3": lambda: channel_target(UniformQuantizer(bits=3)),
    "topk-dense": lambda: channel_target(TopK(density=0.4)),
    "powersgd-steps": lambda: channel_target(PowerSgd(min_compression=0, dense_steps=2)),
    "terngrad-mixed": lambda: channel_target(TernGrad(clip=None, min_size=10, last_float=True)),
    "terngrad-sums": sums_target,
    "demo-mean": demo_target,
    "onebit-adam": lambda: replicated_target(OneBitAdam(workers=2, warmup=1, lr=0.1)),
    "decoupled-momentum": lambda: replicated_target(
        DecoupledMomentum(workers=2, lr=0.1, sign=False, compressor=Demo(k=4, chunk=8))
    ),
    "just-one-byte": lambda: replicated_target(
        JustOneByte(workers=2, lr=0.1, compressor=OneByteSpsa(samples=3))
    ),
}
TARGETS = [*CHANNELS, *EXTRA]
each_target = pytest.mark.parametrize("name", TARGETS)


def target(name):
    return EXTRA[name]() if name in EXTRA else channel_target(MEMBERS[name])


INTERESTING = [
    struct.pack("<I", value) for value in (0, 1, 255, 587, 588, 589, 2**31 - 1, 2**31, 2**32 - 1)
] + [struct.pack("<f", value) for value in (np.nan, np.inf, -np.inf, 3.4e38, -1.0, 1e-45)]


def mutated(payload, others, r):
    """The payload after one to three changes an attacker or a bad line would make."""
    data = bytearray(payload)
    for _ in range(int(r.integers(1, 4))):
        kind = int(r.integers(9))
        at = int(r.integers(len(data))) if data else 0
        early = min(at, int(r.integers(40)))  # headers and lengths stand early
        if kind == 0 and data:
            data[at] ^= 1 << int(r.integers(8))
        elif kind == 1 and data:
            data[early] = int(r.integers(256))
        elif kind == 2:
            del data[at:]
        elif kind == 3:
            data += r.bytes(int(r.integers(1, 64)))
        elif kind == 4:
            word = INTERESTING[int(r.integers(len(INTERESTING)))]
            data[early : early + 4] = word
        elif kind == 5:
            word = INTERESTING[int(r.integers(len(INTERESTING)))]
            data[at : at + 4] = word
        elif kind == 6:
            del data[at : at + int(r.integers(1, 9))]
        elif kind == 7:
            other = others[int(r.integers(len(others)))]
            data[at:] = other[at:]
        else:
            data[early:] = r.bytes(max(len(data) - early, 0))
    return bytes(data)


def fuzz(name, count, seed):
    payloads, readers = target(name)
    r = np.random.default_rng(seed)
    refused = []
    for i in range(count):
        data = mutated(payloads[i % len(payloads)], payloads, r)
        try:
            y = readers[i % len(readers)](data)
        except PayloadError as error:
            refused.append(str(error))
            continue
        if isinstance(y, bytes):
            continue  # what the server made of it
        assert y.shape == (SHAPES.size,)
        assert y.dtype == np.float32
        assert np.isfinite(y).all()
    assert all(len(message) > 20 for message in refused)
    return len(refused)


@each_target
def test_mutated_payloads_are_refused_or_decode_to_finite_vectors(name):
    payloads, _ = target(name)
    for reader in target(name)[1]:
        reader_is_alive = False
        for payload in payloads:
            try:
                reader(payload)
                reader_is_alive = True
            except PayloadError:
                continue
        assert reader_is_alive
    assert fuzz(name, 500, 1) > 150


@pytest.mark.slow
@each_target
def test_20000_mutated_payloads_are_refused_or_decode_to_finite_vectors(name):
    assert fuzz(name, 20_000, 2) > 5_000


@each_target
def test_every_truncation_is_refused(name):
    payloads, readers = target(name)
    for payload in payloads:
        for length in {0, 1, 5, 6, 7, 11, len(payload) // 2, len(payload) - 4, len(payload) - 1}:
            for reader in readers:
                with pytest.raises(PayloadError):
                    reader(payload[:length])


@each_target
def test_bytes_behind_the_end_are_refused(name):
    payloads, readers = target(name)
    for payload in payloads:
        for reader in readers:
            for tail in (b"\0", b"\xff" * 8, b"\0" * 100_000):
                with pytest.raises(PayloadError):
                    reader(payload + tail)


@each_target
def test_what_is_not_bytes_is_refused(name):
    _, readers = target(name)
    for reader in readers:
        for thing in (None, 3, "text", [1, 2], np.zeros(9)):
            with pytest.raises(PayloadError, match="bytes"):
                reader(thing)


# Large enough that the buffers of the kernels' blocks are small beside it.
MEDIUM = Shapes(((200, 200), (10_000,)))


@pytest.mark.parametrize("name", CHANNELS)
def test_memory_is_bounded_by_the_model_whatever_is_claimed(name):
    channel = MEMBERS[name]
    x = vectors(MEDIUM.size)["gaussian"]
    state, receiver = channel.init(MEDIUM), channel.init_receiver(MEDIUM)
    payloads = []
    for seed in range(2):
        payload, state = channel.encode(x, MEDIUM, state, np.random.default_rng(seed))
        payloads.append(payload)
    # Tables that are made once and kept are made here.
    _, receiver = channel.receive(payloads[0], MEDIUM, receiver)
    channel.receive(payloads[1], MEDIUM, receiver)
    r = np.random.default_rng(4)
    attempts = [mutated(payloads[i % 2], payloads, r) for i in range(20)]
    # Every four bytes of the head in turn say 4 billion.
    for at in range(0, min(len(payloads[1]) - 4, 40)):
        attempts.append(payloads[1][:at] + b"\xff\xff\xff\xff" + payloads[1][at + 4 :])
    bound = 64 * 4 * MEDIUM.size
    tracemalloc.start()
    try:
        for data in attempts:
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            with contextlib.suppress(PayloadError):
                channel.receive(data, MEDIUM, receiver)
            assert tracemalloc.get_traced_memory()[1] - before < bound
    finally:
        tracemalloc.stop()


# ---- bombs: payloads of the right length for a large model -----------------------------------

LARGE = Shapes(((1000, 200),))


def peak_of(call):
    tracemalloc.start()
    try:
        with pytest.raises(PayloadError) as caught:
            call()
        return tracemalloc.get_traced_memory()[1], str(caught.value)
    finally:
        tracemalloc.stop()


def topk_payload(k, kind, body, values):
    head = struct.pack("<BBI", TopK.FORMAT, 1, LARGE.size) + struct.pack("<I", k)
    return head + bytes([kind]) + body + values


def gaps(code, content):
    return bytes([code]) + struct.pack("<I", len(content)) + content


K = 2000
VALUES = np.ones(K, dtype=np.float32).tobytes()


@pytest.mark.parametrize(
    ("body", "why"),
    [
        # 31 low bits each, all set: the positions run far out of the vector.
        (gaps(integers.FIXED, bytes([12]) + b"\xff" * 3000), "position"),
        # One gap of 2^32 after another.
        (gaps(integers.GAMMA, b"\0\0\0\x80" * 1000), "bits|ends before"),
        (gaps(integers.DELTA, b"\0" * 3000), "ends before"),
        (gaps(integers.LEB128, b"\xff" * 3999 + b"\x01"), "LEB128"),
        (gaps(integers.LEB128, b"\x80" * 100 + b"\0" * 2000), "LEB128|bits"),
        (gaps(integers.RICE, bytes([32]) + b"\xff" * 4000), "wanted|ends before"),
        (gaps(integers.RICE, bytes([200]) + b"\xff" * 3000), "width"),
        (gaps(9, b"\0" * 3000), "unknown integer code"),
        (bytes([integers.FIXED]) + struct.pack("<I", 2**32 - 1), "wanted"),
    ],
)
def test_positions_that_lie_are_refused_without_being_believed(body, why):
    payload = topk_payload(K, 0, body, VALUES)
    peak, message = peak_of(lambda: TopK(k=K).decode(payload, LARGE))
    assert peak < 40 * 4 * LARGE.size
    assert re.search(why, message), message


def test_counts_that_lie_are_refused():
    bitmap = b"\xff" * (LARGE.size // 8)
    for k in (0, 1, K - 1, K + 1, 2**32 - 1):
        with pytest.raises(PayloadError, match="k="):
            TopK(k=K).decode(topk_payload(k, 1, bitmap[:1000], VALUES), LARGE)


def test_bitmap_with_another_number_of_ones_is_refused():
    shapes = Shapes.vector(64)
    right = struct.pack("<BBI", 2, 1, 64) + struct.pack("<I", 32) + b"\x01"
    values = np.ones(32, dtype=np.float32).tobytes()
    assert TopK(k=32).decode(right + b"\x0f" * 8 + values, shapes).sum() == 32
    with pytest.raises(PayloadError, match="bitmap of 33"):
        TopK(k=32).decode(right + b"\x0f" * 7 + b"\x1f" + values, shapes)


def test_duplicates_and_disorder_of_local_indices_are_refused():
    demo = Demo(k=2, chunk=8)
    shapes = Shapes(((8, 8),))
    payload, _ = demo.encode(
        np.random.default_rng(0).standard_normal(64).astype(np.float32),
        shapes,
        {},
        np.random.default_rng(0),
    )
    for pair in ((5, 5), (9, 3)):
        code = struct.pack("<H", pair[0] | pair[1] << 6)
        with pytest.raises(PayloadError, match="ascending"):
            demo.decode(payload[:6] + code + payload[8:], shapes)


@pytest.mark.parametrize("value", [np.nan, np.inf, -1.0])
@for_each("name", ["int8", "qsgd", "terngrad", "sign", "fp8_e4m3"])
def test_scales_that_are_no_scales_are_refused(name, value):
    payload = bytearray(channel_target(MEMBERS[name])[0][0])
    at = 7 if name == "qsgd" else 6
    payload[at : at + 4] = struct.pack("<f", value)
    with pytest.raises(PayloadError, match=r"NaN|below"):
        MEMBERS[name].decode(bytes(payload), SHAPES)


def test_a_payload_for_another_number_of_entries_is_refused_though_its_length_fits():
    payload, _ = TopK(k=5).encode(X, SHAPES, {}, np.random.default_rng(0))
    with pytest.raises(PayloadError, match="payload is for d=588, the model has d=589"):
        TopK(k=5).decode(payload, Shapes.vector(589))


def test_levels_that_do_not_exist_are_refused():
    """Codes are offset by a power of two, so the lowest one stands for a level too many."""
    shapes = Shapes.vector(4)
    for compressor, codes in (
        (Qsgd(7), b"\0\0"),
        (UniformQuantizer(8), b"\0" * 4),
        (UniformQuantizer(12), b"\0" * 6),
    ):
        head = b"\0" if isinstance(compressor, Qsgd) else b""
        payload = struct.pack("<BBI", compressor.FORMAT, 1, 4) + head
        payload += np.float32(1).tobytes() + codes
        with pytest.raises(PayloadError, match="a level lies outside"):
            compressor.decode(payload, shapes)
    # Sparse: one positive level at position 0, of 7 and of 8 where 7 is the most.
    shapes = Shapes.vector(200)
    position = bytes([0, integers.FIXED]) + struct.pack("<I", 1) + b"\0"
    start = struct.pack("<BBIBfI", Qsgd.FORMAT, 1, 200, 1, 1.0, 1) + position + b"\0"
    level = bytes([integers.LEB128]) + struct.pack("<I", 1)
    assert Qsgd(7).decode(start + level + b"\x06", shapes)[0] == 1
    with pytest.raises(PayloadError, match="level 8, at most 7"):
        Qsgd(7).decode(start + level + b"\x07", shapes)


def test_the_unused_code_of_terngrad_is_refused():
    payload = struct.pack("<BBI", TernGrad.FORMAT, 1, 4) + np.float32(1).tobytes()
    shapes = Shapes.vector(4)
    assert TernGrad().decode(payload + b"\xa4", shapes).tolist() == [-1, 0, 1, 1]
    with pytest.raises(PayloadError, match="code 3"):
        TernGrad().decode(payload + b"\xe4", shapes)


@pytest.mark.parametrize(
    "compressor", [RandK(density=0.1, scaled=True), PowerSgd(min_compression=0), CountSketch(k=5)]
)
def test_finite_numbers_that_overflow_when_decoded_are_refused(compressor):
    payload, _ = compressor.encode(X, SHAPES, compressor.init(SHAPES), np.random.default_rng(0))
    huge = np.float32(3e38).tobytes()
    start = {"RandK": 14, "PowerSgd": 7}.get(type(compressor).__name__)
    if start is None:
        # The median of cells is a cell: a sketch cannot overflow.
        data = payload[:6] + huge * ((len(payload) - 6) // 4)
        assert np.isfinite(compressor.decode(data, SHAPES)).all()
        return
    data = payload[:start] + huge * ((len(payload) - start) // 4)
    with pytest.raises(PayloadError, match="finite"):
        compressor.decode(data, SHAPES)


@pytest.mark.parametrize("channel", [EF21(Identity()), Diana(Identity(), alpha=0.1)])
def test_differences_that_add_up_beyond_float32_are_refused(channel):
    huge = np.full(SHAPES.size, 3e38, dtype=np.float32)
    receiver = {**channel.init_receiver(SHAPES), "h": huge, "sequence": np.array([1])}
    payload, _ = Identity().encode(huge, SHAPES, {}, np.random.default_rng(0))
    head = struct.pack("<BBIBI", channel.FORMAT, 1, SHAPES.size, 1, 1)
    with pytest.raises(PayloadError, match="not finite"):
        channel.receive(head + payload, SHAPES, receiver)


@pytest.mark.parametrize("scale", [1e19, 3e38])
def test_a_momentum_that_would_overflow_the_optimiser_is_refused(scale):
    """Its square would be an infinite variance, and a step with v = 0 an infinite model."""
    rule = OneBitAdam(workers=1, warmup=0, lr=1.0)
    worker, server = rule.init_worker(SHAPES), rule.init_server(SHAPES)
    payload, _ = rule.send(X, SHAPES, worker, np.random.default_rng(0))
    data = payload[:17] + np.float32(scale).tobytes() + payload[21:]
    with pytest.raises(PayloadError, match="magnitude"):
        rule.combine([data], SHAPES, server, np.random.default_rng(0))
    down, _ = rule.combine([payload], SHAPES, server, np.random.default_rng(0))
    data = down[:17] + np.float32(scale).tobytes() + down[21:]
    with pytest.raises(PayloadError, match="magnitude"):
        rule.apply(X, data, SHAPES, worker)


def test_a_refused_message_leaves_the_receiver_as_it_was():
    channel = MEMBERS["ef21"]
    payloads, _ = channel_target(channel)
    _, state = channel.receive(payloads[0], SHAPES, channel.init_receiver(SHAPES))
    before = {key: value.copy() for key, value in state.items()}
    with pytest.raises(PayloadError):
        channel.receive(payloads[1][:-1] + b"\xff\xff", SHAPES, state)
    assert all(np.array_equal(before[key], state[key]) for key in before)
    channel.receive(payloads[1], SHAPES, state)


def test_reader_names_the_format_and_the_bound():
    with pytest.raises(PayloadError, match="payload of 3 bytes; for d=10 it must have 46"):
        Identity().decode(b"abc", Shapes.vector(10))
    with pytest.raises(PayloadError, match="format 1 version 9"):
        Identity().decode(b"\x01\x09" + bytes(44), Shapes.vector(10))
    with pytest.raises(PayloadError, match="4 bytes wanted at offset 0, 2 are left"):
        Reader(b"ab", "test").u32()
