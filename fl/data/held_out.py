"""Which examples of a user's own data are held out, and who has which."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl.data.federated import IntArray, Partitions, Source
from fl.errors import ConfigError
from fl.randomness import generator

# The held-out examples must be the same for every run: their draw has a seed of its own.
HELD_OUT_SEED = 0

TEST = ("test", "val", "validation")


def drawn(n: int, test_fraction: float, clients: NDArray[Any] | None = None) -> NDArray[np.bool_]:
    """Returns which of n examples are held out, shape (n,).

    Args:
        n: at least 2.
        test_fraction: share of them, strictly between 0 and 1.
        clients: of each example whose it is, any values; of each client that share is held out.

    Raises:
        ConfigError: the share leaves nothing to train on or nothing to test with.
    """
    if not isinstance(test_fraction, int | float) or not 0 < test_fraction < 1:
        raise ConfigError(f"test_fraction is {test_fraction!r}; it must be between 0 and 1, as 0.2")
    rng = generator(HELD_OUT_SEED, "own data", "held-out")
    chosen = np.zeros(n, bool)
    owners = (
        np.zeros(n, np.int64) if clients is None else np.unique(clients, return_inverse=True)[1]
    )
    for owner in range(owners.max(initial=0) + 1):
        rows = np.flatnonzero(owners == owner)
        chosen[rng.permutation(rows)[: int(test_fraction * len(rows))]] = True
    if not chosen.any() or chosen.all():
        raise ConfigError(
            f"test_fraction is {test_fraction}, which holds out {chosen.sum()} of {n} examples"
            f"{'' if clients is None else ', client by client'}: both training and test need one "
            "at least"
        )
    return chosen


def said(values: NDArray[Any], column: str) -> NDArray[np.bool_]:
    """Returns which examples are held out by a column that says "train" or "test" of each.

    Raises:
        ConfigError: it says something else, or the same of all.
    """
    words = np.array([str(value).lower() for value in values.tolist()])
    wrong = np.flatnonzero(~np.isin(words, ("train", *TEST)))
    if len(wrong):
        raise ConfigError(
            f"column {column!r} has {str(values[wrong[0]])!r} in row {wrong[0] + 1}; a split must "
            f"say train or one of {', '.join(TEST)} in every row"
        )
    chosen = np.asarray(words != "train")
    if not chosen.any() or chosen.all():
        raise ConfigError(
            f"column {column!r} has {words[0]!r} in all rows; a split must have rows to train on "
            "and rows to test with"
        )
    return chosen


def natural(train: NDArray[Any], test: NDArray[Any] | None) -> tuple[Partitions, Partitions | None]:
    """Returns the rows of training examples, and of those held out, of each client.

    Clients are in the order of their values. One without training examples is left out; what is
    held out of it is among the pooled examples still.

    Args:
        train: of each training example whose it is.
        test: likewise of those held out; None if that is not known.
    """
    names, owners = np.unique(train, return_inverse=True)

    def rows(of: IntArray) -> list[IntArray]:
        order = np.argsort(of, kind="stable")
        ends = np.searchsorted(of[order], np.arange(len(names) + 1))
        return [order[a:b] for a, b in itertools.pairwise(ends)]

    own = Partitions.from_arrays(rows(owners))
    if test is None:
        return own, None
    place = {name: c for c, name in enumerate(names.tolist())}
    known = np.array([place.get(name, len(names)) for name in test.tolist()], np.int64)
    return own, Partitions.from_arrays(rows(known))


def validated(source: Source, share: float) -> Source:
    """Returns a source that is tested on a share of its own training examples, which nobody has.

    What was held out is left out. Of each natural client that share is taken. It is drawn at
    random, the same for every seed of a run, so that choices which were made by these examples owe
    nothing to the test set.

    Args:
        source: whose models are to be chosen among.
        share: of the training examples, strictly between 0 and 1.

    Raises:
        ConfigError: there are no examples to hold out, or the share is of too few.
    """
    if source.task == "game":
        raise ConfigError(f"data {source.name!r} is a game, which has no examples to hold out")
    n = len(source.train)
    rng = generator(HELD_OUT_SEED, "validation")
    own = source.natural
    chosen = np.zeros(n, bool)
    for rows in [np.arange(n)] if own is None else map(own.__getitem__, range(len(own))):
        chosen[rng.permutation(rows)[: int(share * len(rows))]] = True
    if not chosen.any():
        raise ConfigError(
            f"validation is {share}, which holds out none of the {n} training examples"
            f"{'' if own is None else ', client by client'}: choose more"
        )
    kept, held = np.flatnonzero(~chosen), np.flatnonzero(chosen)
    place = np.where(chosen, np.cumsum(chosen), np.cumsum(~chosen)) - 1
    return replace(
        source,
        train=source.train.take(kept),
        test=source.train.take(held),
        natural=own and _those(own, ~chosen, place),
        natural_test=own and _those(own, chosen, place),
        clusters=None if source.clusters is None else source.clusters[kept],
        test_clusters=None if source.clusters is None else source.clusters[held],
    )


def _those(of: Partitions, chosen: NDArray[np.bool_], place: IntArray) -> Partitions:
    """Returns the rows that are chosen, each by its place among them."""
    rows = (of[p] for p in range(len(of)))
    return Partitions.from_arrays(place[r[chosen[r]]] for r in rows)
