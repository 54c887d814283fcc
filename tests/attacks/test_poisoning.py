"""Poisoned data: Byzantine clients' examples change, and nobody else's."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fl.attacks import Backdoor, Combined, Gauss, LabelFlip, byzantine_clients, poisoned
from fl.data import Examples, FederatedData
from fl.data.federated import Partitions
from fl.errors import ConfigError

CLIENTS, EACH = 6, 10


def data(sizes=(EACH,) * CLIENTS):
    rng = np.random.default_rng(0)
    n = sum(sizes)
    x = rng.integers(0, 100, (n, 1, 5, 5), dtype=np.uint8)
    y = rng.integers(0, 4, n)
    x.flags.writeable = y.flags.writeable = False
    order = rng.permutation(n)
    bounds = np.cumsum(sizes)[:-1]
    return FederatedData(
        "toy",
        Examples(x, y),
        Examples(x[:20], y[:20]),
        Partitions.from_arrays(np.split(order, bounds)),
        num_classes=4,
        input_shape=(1, 5, 5),
    )


def test_who_is_byzantine_is_drawn_from_the_seed():
    draws = [byzantine_clients(20, 5, seed) for seed in range(50)]
    assert byzantine_clients(20, 5, 3) == draws[3]
    assert len(set(draws)) > 40
    for drawn in draws:
        assert len(set(drawn)) == 5
        assert list(drawn) == sorted(drawn)
    # each client is drawn about as often as any other: 12.5 of 50 times on average
    assert np.bincount(np.concatenate(draws), minlength=20).min() >= 3


@pytest.mark.parametrize("number", [0, 6, -1, True, 2.0])
def test_a_number_of_byzantine_clients_that_cannot_be_is_refused(number):
    with pytest.raises(ConfigError, match="must be a whole number from 1 to 5"):
        byzantine_clients(6, number, seed=0)


@pytest.mark.parametrize("attack", [LabelFlip(4), Backdoor(target=2, share=0.4)])
def test_only_byzantine_clients_examples_change(attack):
    clean = data()
    dirty = poisoned(clean, attack, (1, 4), CLIENTS, seed=0)
    changed = (dirty.train.y != clean.train.y) | (dirty.train.x != clean.train.x).any(
        axis=(1, 2, 3)
    )
    theirs = np.zeros(len(changed), dtype=bool)
    theirs[np.concatenate([clean.partitions[1], clean.partitions[4]])] = True
    assert changed[theirs].any()
    assert not changed[~theirs].any()
    assert dirty.test is clean.test
    assert dirty.partitions is clean.partitions


def test_all_labels_of_byzantine_clients_are_flipped():
    clean = data()
    dirty = poisoned(clean, LabelFlip(4), (2,), CLIENTS, seed=0)
    rows = clean.partitions[2]
    np.testing.assert_array_equal(dirty.train.y[rows], 3 - clean.train.y[rows])


def test_the_stated_share_gets_the_trigger_and_the_label():
    clean = data()
    attack = Backdoor(target=2, share=0.4, size=2, corners=False)
    dirty = poisoned(clean, attack, (0, 5), CLIENTS, seed=0)
    for client in (0, 5):
        rows = clean.partitions[client]
        marked = (dirty.train.x[rows][..., -2:, -2:] == 255).all(axis=(1, 2, 3))
        assert marked.sum() == 4
        assert (dirty.train.y[rows][marked] == 2).all()
        np.testing.assert_array_equal(dirty.train.y[rows][~marked], clean.train.y[rows][~marked])


def test_what_a_client_draws_does_not_depend_on_who_else_is_byzantine():
    clean, attack = data(), Backdoor(share=0.5)
    rows = clean.partitions[3]
    alone = poisoned(clean, attack, (3,), CLIENTS, seed=1)
    together = poisoned(clean, attack, (0, 3, 5), CLIENTS, seed=1)
    other = poisoned(clean, attack, (3,), CLIENTS, seed=2)
    np.testing.assert_array_equal(alone.train.x[rows], together.train.x[rows])
    assert (alone.train.x[rows] != other.train.x[rows]).any()
    marked = [
        [i for i, row in enumerate(clean.partitions[c]) if together.train.x[row, 0, 0, 0] == 255]
        for c in (0, 3, 5)
    ]
    assert marked[0] != marked[1] != marked[2]  # each client draws for itself


def test_a_client_without_examples_has_nothing_to_poison():
    clean = data(sizes=(10, 0, 10))
    for attack in (LabelFlip(4), Backdoor()):
        dirty = poisoned(clean, attack, (1,), 3, seed=0)
        np.testing.assert_array_equal(dirty.train.y, clean.train.y)


def test_clients_that_share_a_partition_with_honest_ones_are_refused():
    with pytest.raises(ConfigError, match="12 clients share 6 partitions"):
        poisoned(data(), LabelFlip(4), (1,), 12, seed=0)


def test_partitions_that_share_examples_are_refused():
    clean = data()
    rows = [clean.partitions[p] for p in range(CLIENTS)]
    rows[0] = np.append(rows[0], rows[1][0])
    shared = replace(clean, partitions=Partitions.from_arrays(rows))
    with pytest.raises(ConfigError, match="have examples in common"):
        poisoned(shared, LabelFlip(4), (1,), CLIENTS, seed=0)
    poisoned(shared, LabelFlip(4), (2,), CLIENTS, seed=0)  # nobody shares with client 2


@pytest.mark.parametrize(
    ("attack", "match"),
    [
        (LabelFlip(10), "num_classes is 10, but data 'toy' has 4 classes"),
        (Backdoor(target=4), "target is 4, but data 'toy' is classification with 4 classes"),
        (Backdoor(size=3), "fits into"),
        (Backdoor(value=256), "whole numbers from 0 to 255"),
        (Backdoor(value=0.5), "whole numbers from 0 to 255"),
    ],
)
def test_an_attack_that_does_not_fit_the_data_is_refused(attack, match):
    with pytest.raises(ConfigError, match=match):
        poisoned(data(), attack, (1,), CLIENTS, seed=0)


def test_text_has_no_backdoor():
    tokens = Examples(np.zeros((4, 3), np.uint8), np.zeros((4, 3), np.int64))
    text = FederatedData(
        "text", tokens, tokens, Partitions.contiguous([2, 2]), 5, (3,), task="next-token"
    )
    with pytest.raises(ConfigError, match="is next-token with 5 classes: need images"):
        poisoned(text, Backdoor(), (1,), 2, seed=0)


def test_combined_attacks_are_one_on_data_and_one_on_what_is_sent():
    Combined(LabelFlip(4), Gauss())
    with pytest.raises(ConfigError, match="an attack on data, and one on what clients send"):
        Combined(Gauss(), LabelFlip(4))
