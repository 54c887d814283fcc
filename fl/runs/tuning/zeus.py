"""Batch size and power limit of a job that recurs, chosen while it does: Zeus.

You, Chung, Chowdhury, "Zeus: Understanding and Optimizing GPU Energy Consumption of DNN Training",
NSDI 2023, arXiv:2208.06102: cost (equation 2), power limit by just-in-time profiling (section 4.2),
batch size by pruning and Gaussian Thompson sampling (section 4.3, Algorithms 1 and 2), with the
order of exploration and the costs of runs that are stopped of the authors' code (ml-energy/zeus).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from fl.checks import at_least, within_unit
from fl.errors import ConfigError

_LEAST_VARIANCE = 1e-12  # of rewards, over the square of their mean: equal costs are no certainty
_DEAR = 100.0  # times the limit on costs: what a batch size costs of which no epoch is within it


def cost(eta: float, energy_j: float, time_s: float, max_power_w: float) -> float:
    """Returns eta ETA + (1 - eta) MAXPOWER TTA, J.

    Args:
        eta: weight of energy, in [0, 1].
        energy_j: ETA, spent until the target is reached.
        time_s: TTA, until then.
        max_power_w: MAXPOWER, the highest power limit.
    """
    return eta * energy_j + (1 - eta) * max_power_w * time_s


def best_limit(
    profile: Mapping[float, tuple[float, float]], eta: float, max_power_w: float
) -> float:
    """Returns the power limit of least cost per epoch (equation 7), the highest of equal ones.

    Args:
        profile: of each limit, the s of an epoch and the W that it takes on average.
        eta: weight of energy, in [0, 1].
        max_power_w: MAXPOWER.
    """

    def of(limit: float) -> float:
        seconds, watts = profile[limit]
        return (eta * watts + (1 - eta) * max_power_w) * seconds

    return min(sorted(profile, reverse=True), key=of)


class Belief(NamedTuple):
    """What is believed of the mean reward of a batch size: N(mean, variance).

    Attributes:
        mean: of -cost, J.
        variance: J^2.
    """

    mean: float
    variance: float


class State(NamedTuple):
    """What is known of a job.

    Attributes:
        alive: batch sizes that are not pruned, ascending.
        default: b0, from which the next round of pruning starts.
        rounds: of pruning that are over.
        down, up: batch sizes that this round has still to run, in order.
        good: those that reached the target in this round, with their costs.
        history: batch sizes that were run, with their costs, in order.
        least_cost: of a recurrence so far, until the target was reached; infinity before any.
        spent: cost of the runs of this recurrence so far, none of which has reached the target.
    """

    alive: tuple[int, ...]
    default: int
    rounds: int
    down: tuple[int, ...]
    up: tuple[int, ...]
    good: tuple[tuple[int, float], ...] = ()
    history: tuple[tuple[int, float], ...] = ()
    least_cost: float = math.inf
    spent: float = 0.0


@dataclass(frozen=True)
class Zeus:
    """Chooses the batch size of a recurring job.

    Each run of the job is of `batch_size(state)`; it is stopped before its cost exceeds
    `limit(state)`, beta times the least that a recurrence has cost; then `observe` is told what it
    has cost, and whether it reached the target. If not, the job is run again.

    1. Pruning, `pruning_rounds` times: from b0 downwards as long as the target is reached, then
       from b0 upwards likewise. Those that reached it stay, and the cheapest is the next b0.
    2. Thompson sampling: the reward of a batch size b is minus its cost; of n rewards that were
       seen, the last `window` at most, with mean m and variance v (of the sample, by n), the belief
       about their mean is N(m, v / n): the posterior of a Gaussian of known variance v, with a
       prior of precision 0. The batch size with the largest draw is run. One that was seen less
       than twice is run before that.

    Attributes:
        batch_sizes: that can be run.
        default: b0, of which it is taken for granted that it reaches the target.
        beta: above 1; infinity stops no run early.
        window: 0 for all rewards.
        pruning_rounds: 0 takes all batch sizes.

    Raises:
        ConfigError: an argument is out of its range.
    """

    batch_sizes: Sequence[int]
    default: int
    beta: float = 2.0
    window: int = 0
    pruning_rounds: int = 2

    def __post_init__(self) -> None:
        if self.default not in self.batch_sizes:
            raise ConfigError(
                f"default is {self.default}; it must be one of batch_sizes, "
                f"{sorted(self.batch_sizes)}"
            )
        if not self.beta > 1:
            raise ConfigError(f"beta is {self.beta}; it must be above 1, infinity stops no run")
        at_least("window", self.window, 0)
        at_least("pruning_rounds", self.pruning_rounds, 0)

    def init(self) -> State:
        """Returns the state before the first run."""
        return _round(tuple(sorted(set(self.batch_sizes))), self.default, 0)

    def explores(self, state: State) -> bool:
        """Returns whether batch sizes are still pruned."""
        return state.rounds < self.pruning_rounds

    def batch_size(self, state: State, rng: np.random.Generator) -> int:
        """Returns the batch size of the next run."""
        if self.explores(state):
            return (state.down or state.up)[0]
        seldom = [b for b in state.alive if len(self._rewards(state, b)) < 2]
        if seldom:
            return int(rng.choice(seldom))
        beliefs = [self.belief(state, b) for b in state.alive]
        draws = [rng.normal(mean, math.sqrt(variance)) for mean, variance in beliefs]
        return state.alive[int(np.argmax(draws))]

    def limit(self, state: State) -> float:
        """Returns the cost before which a run is stopped."""
        return self.beta * state.least_cost

    def belief(self, state: State, batch_size: int) -> Belief:
        """Returns the belief about the mean reward of a batch size that was run."""
        rewards = self._rewards(state, batch_size)
        mean = float(np.mean(rewards))
        variance = max(float(np.var(rewards)), _LEAST_VARIANCE * mean**2)
        return Belief(mean, variance / len(rewards))

    def observe(self, state: State, batch_size: int, cost: float, *, reached: bool) -> State:
        """Returns the state after a run.

        Args:
            state: before it.
            batch_size: of the run.
            cost: until it reached the target, or was stopped, J.
            reached: whether it reached the target.

        Raises:
            ConfigError: no batch size has reached the target in a round of pruning.
        """
        spent = state.spent + cost
        least = min(state.least_cost, spent) if reached else state.least_cost
        state = state._replace(least_cost=least, spent=0.0 if reached else spent)
        return self._noted(state, batch_size, cost, reached)

    def too_dear(self, state: State, batch_size: int) -> State:
        """Returns the state after a batch size that was not run, as one epoch is over the limit."""
        return self._noted(state, batch_size, _DEAR * self.limit(state), reached=False)

    def _rewards(self, state: State, batch_size: int) -> list[float]:
        rewards = [-cost for b, cost in state.history if b == batch_size]
        return rewards[-self.window :] if self.window else rewards

    def _noted(self, state: State, batch_size: int, cost: float, reached: bool) -> State:
        state = state._replace(history=(*state.history, (batch_size, cost)))
        if not self.explores(state) or batch_size != (state.down or state.up)[0]:
            return state  # one of several at once may be of another batch size
        down, up = state.down, state.up
        if reached:
            down, up = (down[1:], up) if down else ((), up[1:])
            state = state._replace(good=(*state.good, (batch_size, cost)))
        else:
            down, up = ((), up) if down else ((), ())
        if down or up:
            return state._replace(down=down, up=up)
        if not state.good:
            raise ConfigError(
                f"no batch size of {list(state.alive)} reaches the target: choose a default that "
                "does, or more epochs"
            )
        alive = tuple(sorted(b for b, _ in state.good))
        default = min(state.good, key=lambda one: one[1])[0]
        begun = _round(alive, default, state.rounds + 1)
        return state._replace(**{k: getattr(begun, k) for k in State._fields[:6]})


def _round(alive: tuple[int, ...], default: int, rounds: int) -> State:
    """Returns the state at the beginning of a round of pruning."""
    down = tuple(reversed([b for b in alive if b <= default]))
    return State(alive, default, rounds, down, tuple(b for b in alive if b > default))


class RecurringJob(NamedTuple):
    """A recurring job as a table of what was measured.

    Attributes:
        epochs: of each batch size, the epochs that runs took to the target; None for runs that did
            not reach it.
        profile: of each batch size and power limit in W, the s of an epoch and the W on average.
        max_epochs: of a run.
    """

    epochs: Mapping[int, Sequence[int | None]]
    profile: Mapping[int, Mapping[float, tuple[float, float]]]
    max_epochs: int

    @property
    def max_power_w(self) -> float:
        """Returns the highest power limit, W."""
        return max(limit for limits in self.profile.values() for limit in limits)


class JobRun(NamedTuple):
    """One run of a job.

    Attributes:
        recurrence: which, from 0; one may take several runs.
        batch_size: of it.
        limit_w: the power limit, W.
        energy_j: spent.
        time_s: taken.
        reached: whether it reached the target.
    """

    recurrence: int
    batch_size: int
    limit_w: float
    energy_j: float
    time_s: float
    reached: bool


def recur(
    zeus: Zeus,
    job: RecurringJob,
    recurrences: int,
    rng: np.random.Generator,
    *,
    eta: float = 0.5,
    most_tries: int = 20,
) -> list[JobRun]:
    """Has a job recur under Zeus; returns its runs.

    The first run of a batch size profiles the power limits in its first epoch, of which each limit
    has an equal part; from then on it runs at the best one.

    Args:
        zeus: chooses batch sizes.
        job: what runs take; each run is one of those that were measured, drawn at random.
        recurrences: how often the job is done.
        rng: draws.
        eta: weight of energy, in [0, 1].
        most_tries: runs of a recurrence.

    Raises:
        ConfigError: eta is out of its range, or the target was not reached in so many runs.
    """
    within_unit("eta", eta)
    max_w, state, seen, runs = job.max_power_w, zeus.init(), set[int](), []
    for recurrence in range(recurrences):
        for _ in range(most_tries):
            b = zeus.batch_size(state, rng)
            profile = job.profile[b]
            limit_w = best_limit(profile, eta, max_w)
            seconds, watts = profile[limit_w]
            per_epoch = cost(eta, seconds * watts, seconds, max_w)
            allowed = zeus.limit(state) // per_epoch if math.isfinite(zeus.limit(state)) else None
            most = job.max_epochs if allowed is None else min(job.max_epochs, int(allowed))
            needed = job.epochs[b][int(rng.integers(len(job.epochs[b])))]
            if most == 0:
                state = zeus.too_dear(state, b)
                continue
            reached = needed is not None and needed <= most
            n = needed if needed is not None and reached else most
            time_s, energy_j = n * seconds, n * seconds * watts
            if b not in seen:
                seen.add(b)
                time_s += float(np.mean([t for t, _ in profile.values()])) - seconds
                energy_j += float(np.mean([t * w for t, w in profile.values()])) - seconds * watts
            runs.append(JobRun(recurrence, b, limit_w, energy_j, time_s, reached))
            state = zeus.observe(state, b, cost(eta, energy_j, time_s, max_w), reached=reached)
            if reached:
                break
        else:
            raise ConfigError(
                f"recurrence {recurrence + 1} has not reached its target in {most_tries} runs: "
                "choose a default that does, or more epochs"
            )
    return runs
