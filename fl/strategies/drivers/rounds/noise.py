"""The gradient noise scale of a strategy's rounds, and the batches that follow it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fl.aggregation import Aggregator, Mean
from fl.checks import at_least
from fl.clients.app.batches import covered_examples
from fl.errors import ConfigError, NoStep
from fl.strategies.adaptive_batch import BatchTest, RoundSize
from fl.strategies.drivers.events.server import Server, Update
from fl.strategies.noise_scale import Noise, NoiseScale, squared_norm, whole
from fl.strategies.round_rule import Updates, weighted_mean
from fl.vectors.rows import Row


class RoundNoise:
    """What is measured of rounds, and what the next one is made of by that.

    Args:
        decay: of the averages over rounds, see `NoiseScale`; None measures nothing.
        batch_size: of the clients, in the first round; None is all of their examples.
        test: grows their batches, or the number of clients; None leaves both.

    Raises:
        ConfigError: an argument is out of its range, or the test has nothing to go by.
    """

    lasting = ("noise", "made")

    def __init__(self, decay: float | None, batch_size: int | None, test: BatchTest | None) -> None:
        self.scale = None if decay is None else NoiseScale(decay)
        if batch_size is not None:
            at_least("batch_size", batch_size, 1)
        if test is not None:
            _check_test(test, decay, batch_size)
        self.batch_size = batch_size
        self.test = test
        self.begin([])

    def begin(self, places: Sequence[slice]) -> None:
        """Forgets what was measured.

        Args:
            places: of what clients train, in a model's vector.
        """
        self.places = places
        self.noise = Noise()
        self.made: RoundSize | None = None  # by the test; None before it has made any
        self.squares: dict[str, float] = {}  # of the round's changes, if folded, by message

    @property
    def size(self) -> int | None:
        """The batch size of the round that is going on, or of the next one."""
        return self.batch_size if self.made is None else self.made.size

    @property
    def told_size(self) -> int | None:
        """The same, if clients have to be told."""
        return None if self.test is None else self.size

    @property
    def needs_all(self) -> bool:
        """Whether the changes of a round must be held all at once."""
        return self.test is not None and self.test.reads_inner

    @property
    def grows_clients(self) -> bool:
        """Whether the test makes the number of clients grow."""
        return self.test is not None and self.test.grows == "clients"

    def clients(self, n: int) -> int:
        """Returns how many clients a round is to have that would have n."""
        return max(n, self.made.clients) if self.grows_clients and self.made is not None else n

    def fold(self, update: Update, w: Row) -> None:
        """Notes what will be needed of an update to a model w that is not kept."""
        if self.scale is not None:
            self.squares[update.task.message_id] = squared_norm(update.x, self.places, w)

    def measure(
        self,
        server: Server,
        updates: Updates,
        usable: Sequence[Update],
        aggregator: Aggregator,
        clients: int,
    ) -> None:
        """Measures a round, if that is wanted and the clients say what it takes.

        Not by the aggregator F but by the mean: a robust rule has another variance.

        Args:
            server: is told what is found.
            updates: of the round; without deltas if they were folded.
            usable: whose they are.
            aggregator: F, which says whether the mean is weighted.
            clients: S, or how many the round was to have if the test makes them grow.
        """
        if self.scale is None:
            return
        steps, examples = (
            [n for u in usable if (n := whole(u.metrics.get(key))) is not None]
            for key in ("steps", "num-examples")
        )
        if not len(steps) == len(examples) == len(usable):
            return
        plain = aggregator if isinstance(aggregator, Mean) else Mean()
        shares = updates.weights if plain.weighted else np.ones(len(usable))
        if self.squares:
            own = np.array([self.squares[update.task.message_id] for update in usable])
            mean = updates.mean()
        else:
            own = updates.squared_norms()
            try:
                with np.errstate(over="ignore", invalid="ignore"):
                    mean = weighted_mean(updates.deltas, shares, "")
            except NoStep:  # of finite lies there may be no mean, and yet a step of a robust F
                return
        # Who sends no model, as an anchor of FedAMD, has done no step of it.
        steps = [k if moved else 0 for k, moved in zip(steps, own > 0, strict=True)]
        taken = [covered_examples(k, n, self.size) for k, n in zip(steps, examples, strict=True)]
        inner = None
        if self.needs_all:
            inner = np.zeros(len(usable))
            for p in self.places:
                inner += np.einsum("nd,d->n", updates.deltas[:, p], mean[p], dtype=np.float64)
        square = squared_norm(mean, self.places)
        if np.isfinite(square) and np.isfinite(own).all():
            self.noise = self.scale.observe(self.noise, shares, steps, taken, own, square, inner)
            found = self.scale.report(self.noise)
            if self.test is not None:
                found |= {"batch_size": self.size or 0, "batch_clients": clients}
                self.made = self.test.after(RoundSize(self.size, clients), self.noise)
            server.tasks.control.measured(found)


def _check_test(test: BatchTest, decay: float | None, batch_size: int | None) -> None:
    """Raises a ConfigError if a test of batches has nothing to go by, or nothing to grow."""
    if not isinstance(test, BatchTest):
        raise ConfigError(
            f"batch_test is {test!r:.80}; it must be null, or have a _target_ that makes a "
            "fl.strategies.NormTest or InnerProductTest"
        )
    if decay is None:
        raise ConfigError(
            "batch_test is set, and noise_scale, by which it tests, is null: set noise_scale=0.9"
        )
    if batch_size is None:
        raise ConfigError(
            "batch_test is set, and batch_size is null, so that clients step by all of their "
            "examples: set client.batch_size"
        )
    if test.grows == "batch" and test.most < batch_size:
        raise ConfigError(
            f"batch_test.most is {test.most}; it must be at least batch_size, {batch_size}"
        )
