"""SparseLoCo: its rule with everything kept, its bytes, and against NumPy with memories."""

from __future__ import annotations

import numpy as np
import pytest
from hydra import compose, initialize_config_module
from hydra.utils import instantiate
from islands import LAYOUT, driven, references, run

from fl.aggregation import SenderMean
from fl.clients import Sgd
from fl.compression import BlockTopK, Codebook, ErrorFeedback, Shapes
from fl.errors import ConfigError
from fl.strategies import DiLoCo, OuterSgd, SparseLoCo

SGD = Sgd(lr=0.2)


def test_with_everything_kept_it_is_diloco_with_plain_sgd():
    everything = ErrorFeedback(BlockTopK(k=64, density=None, block=64), decay=0.9)
    rule = SparseLoCo(inner_steps=3, alpha=0.5)
    sent = driven(rule, aggregator=SenderMean(), compressor=everything)
    whole = DiLoCo(inner_steps=3, optimizer=OuterSgd(0.5, 0.0, nesterov=False))
    np.testing.assert_allclose(run(sent, 3, rule=SGD).rows, run(whole, 3).rows, atol=1e-6)


def kept(e, k, block):
    """The k largest entries of every block, the others 0."""
    out = np.zeros_like(e)
    for start in range(0, len(e), block):
        part = e[start : start + block]
        chosen = np.argsort(-np.abs(part), kind="stable")[:k]
        out[start + chosen] = part[chosen]
    return out


def test_memories_fade_entries_are_divided_by_their_senders_and_alpha_is_taken_once():
    beta, k, block, alpha = 0.7, 5, 100, 0.6
    compressor = ErrorFeedback(BlockTopK(k=k, density=None, block=block), decay=beta)
    rule = SparseLoCo(inner_steps=2, alpha=alpha)
    strategy = driven(rule, workers=3, aggregator=SenderMean(), compressor=compressor)
    got = run(strategy, 4, workers=3, rule=SGD)
    trained = references(3, SGD)
    theta, e = trained[0].w.astype(np.float32), np.zeros((3, LAYOUT.size), np.float32)
    for version in range(1, 5):
        sent = []
        for m, worker in enumerate(trained):
            worker.w = theta
            worker.train(2)
            e[m] = np.float32(beta) * e[m] + (theta - worker.w.astype(np.float32))
            sent.append(kept(e[m], k, block))
            e[m] -= sent[-1]
        senders = np.maximum(np.count_nonzero(sent, axis=0), 1)
        theta = (theta - alpha * np.sum(sent, axis=0) / senders).astype(np.float32)
        np.testing.assert_allclose(got.rows[version], theta, atol=2e-6)


def test_at_the_defaults_an_entry_in_128_is_sent_in_14_bits():
    with initialize_config_module("fl.conf", version_base=None):
        channel = instantiate(compose("compressor/sparse_loco").compressor)
    blocks = 1000
    length = channel.length(Shapes.vector(4096 * blocks))
    entries = 32 * blocks
    # Two headers and a length, and the codebook of four means.
    assert length.least == length.most == entries * 14 // 8 + 6 + 4 + 6 + 4 * 4
    assert entries / (4096 * blocks) == pytest.approx(0.0078, abs=1e-4)


def test_two_bits_are_four_bins_about_the_mean_each_decoded_to_its_own():
    rng = np.random.default_rng(0)
    x = (rng.standard_normal(999) * 3 + 1).astype(np.float32)
    two = Codebook(bits=2, center=True)
    payload, _ = two.encode(x, Shapes.vector(999), {}, rng)
    assert len(payload) == 6 + 16 + -(-999 * 2 // 8)
    step = 6 * np.std(x.astype(np.float64), ddof=1) / 4
    bins = np.clip(np.rint((x - x.mean(dtype=np.float64)) / step) + 2, 0, 3)
    expected = np.zeros(999)
    for b in range(4):
        expected[bins == b] = x[bins == b].mean(dtype=np.float64)
    np.testing.assert_allclose(two.decode(payload, Shapes.vector(999)), expected, rtol=1e-5)
    assert len(np.unique(expected)) == 4


@pytest.mark.parametrize("bits", [0, 9, 2.5, True])
def test_other_numbers_of_bits_are_refused(bits):
    with pytest.raises(ConfigError, match=f"bits is {bits}"):
        Codebook(bits=bits)


def test_a_rate_of_0_is_refused():
    with pytest.raises(ConfigError, match="alpha is 0"):
        SparseLoCo(alpha=0)
