"""Which examples make up each mini-batch of a task.

A task goes through its client's examples in epochs. Every epoch is a fresh permutation, cut into
batches; the last batch of an epoch is smaller if the size does not divide. It is used, or left out
with `drop_last`, but never the only one: a client with fewer examples than a batch has room for
trains on all of them at once. The order is a function of (seed, client, message), so a task can
run anywhere, alone or beside others.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fl.randomness import philox_key

IntArray = NDArray[np.int64]


class Chunks(NamedTuple):
    """Some of the chunks of equal size into which a client's examples are cut, in their order.

    What does not fill the last chunk is in none. A batch is a chunk, or some of its examples, which
    follow one another round the chunk.

    Attributes:
        first: of them, from 0.
        of: how many chunks there are, above `first`.
        take: examples of each; None, or more than a chunk has, is all.
        begin: how many examples were taken of each before.
    """

    first: int
    of: int
    take: int | None = None
    begin: int = 0

    def size(self, examples: int) -> int:
        """Returns the examples of a batch, of a client with so many."""
        whole = examples // self.of
        return whole if self.take is None else min(self.take, whole)

    def count(self, steps: int | None) -> int:
        """Returns the batches of a task of so many steps; None goes on to the last chunk."""
        left = self.of - self.first
        return left if steps is None else min(steps, left)

    def rows(self, rows: IntArray, steps: int | None) -> IntArray:
        """Returns those of a client's examples that a task of so many steps takes."""
        whole, size = len(rows) // self.of, self.size(len(rows))
        chunks = rows[: whole * self.of].reshape(self.of, whole)
        chunks = chunks[self.first : self.first + self.count(steps)]
        if size < whole:
            chunks = chunks[:, (self.begin + np.arange(size)) % whole]
        return chunks.ravel()


def steps_per_epoch(examples: int, batch_size: int | None, drop_last: bool = False) -> int:
    """Returns ceil(examples / batch_size); one for full batches (None), 0 without examples.

    With `drop_last` it is floor(examples / batch_size), but at least one where there are examples.
    """
    if batch_size is None:
        return min(examples, 1)
    if drop_last:
        return max(examples // batch_size, min(examples, 1))
    return -(-examples // batch_size)


def visiting_order(
    examples: int, epochs: int, seed: int, client: int, message_id: str, *, shuffle: bool
) -> IntArray:
    """Returns the order in which a task visits its examples: int64, shape (epochs * examples,).

    Args:
        examples: how many the client has.
        epochs: passes over them.
        seed: root seed of the run.
        client: names the stream, with the message.
        message_id: of the message that asks for the work.
        shuffle: permute every epoch; otherwise all epochs are in the order of the data.
    """
    if not shuffle:
        return np.tile(np.arange(examples), epochs)
    stream = _batch_stream(seed, client, message_id)
    if epochs == 1:
        return stream.permutation(examples)
    return np.concatenate([stream.permutation(examples) for _ in range(epochs)])


_philox = np.random.Philox(key=0)
_generator = np.random.Generator(_philox)
_start = _philox.state


def _batch_stream(seed: int, client: int, message_id: str) -> np.random.Generator:
    """Returns `generator(seed, "batches", client, message_id)`, valid until the next call.

    A new Philox asks the operating system for entropy it does not use, 6 us for every task. Giving
    one object another key takes 1 us.
    """
    _start["state"]["key"] = philox_key(seed, ("batches", client, message_id))
    _philox.state = _start
    return _generator


def batch_bounds(
    t: int, examples: IntArray, batch_size: int | None, drop_last: bool = False
) -> tuple[IntArray, IntArray]:
    """Returns where batch t of each of n tasks starts in its visiting order, and its length.

    Args:
        t: index of the step in the task.
        examples: of each task's client, int64, shape (n,), each at least 1.
        batch_size: largest batch; None is all examples.
        drop_last: leave out an epoch's last batch if it is smaller than the others.

    Returns:
        Starts and lengths, int64, shape (n,) each.
    """
    if batch_size is None:
        return t * examples, examples
    per_epoch = -(-examples // batch_size)
    if drop_last:
        per_epoch = np.maximum(examples // batch_size, 1)
    epoch, j = np.divmod(t, per_epoch)
    within = j * batch_size
    return epoch * examples + within, np.minimum(batch_size, examples - within)


def covered_examples(
    steps: int, examples: int, batch_size: int | None, drop_last: bool = False
) -> int:
    """Returns how many examples (with repeats) the first `steps` batches of a task hold."""
    per_epoch = steps_per_epoch(examples, batch_size, drop_last)
    if not per_epoch:
        return 0
    epochs, rest = divmod(steps, per_epoch)
    size = batch_size or 0  # only an epoch's last batch is smaller
    whole = min(examples, per_epoch * size) if drop_last and size else examples
    return epochs * whole + rest * size
