"""What a synchronous server rule is: `init` and `step`, with explicit state.

A rule is a frozen dataclass of hyperparameters whose methods map a state and what came in to the
next state. The state is a named tuple of arrays and numbers whose field `w` is the model, so a rule
can be read like its algorithm box and tested without a grid:

    state = rule.init(w, p)
    state = rule.step(state, Updates(deltas, weights))

`fl.strategies.Rounds` does everything else: who is asked and what they are sent, how long a round
waits, which replies are usable, and how they are combined.

How methods with more machinery fit, without a change here:

- A second vector from the server, as SCAFFOLD's c (arXiv:1910.06378): `carries` names it,
  `broadcast` returns it, it travels beside the model and is charged; from the clients: `needs`
  names it, and `updates.extra(name)` holds what came. Compressors take them apart from the model,
  but for those that are `exact`.
- Numbers that clients report: `reads` names the metrics, and `updates.metric(name)` has them.
- Clients that are told different things, as FedProx's stragglers (arXiv:1812.06127): `configs`.
- Clients that are sent and send different things, as FedAMD's anchors and miners
  (arXiv:2206.05891): `carried_by`, and replies whose records may be empty.
- Cohorts of clients that are sent different models, as OptEx's (arXiv:2402.11427): `models`, and
  `updates.of_model(j)` holds what cohort j brought. With `clients_choose` every client is sent all
  of them and takes the one that fits its data best, as in IFCA (arXiv:2006.04088), or a mixture, as
  in FedSoft (arXiv:2112.06053).
- What the server learns from examples of its own, as in FedConv: `public_examples`, `prepared`
  before a round, and `updates.public_data`.
- Steps over the parts that clients hold: `knows_parts`, `init_parts`, and `updates.holds`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar, Literal, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from fl.aggregation import Mean
from fl.clients.rule import Rule
from fl.errors import NoStep, NotFinite
from fl.strategies.clusters import Clusters, Mixture
from fl.strategies.public_data import PublicData
from fl.submodels import SubModel, Whole
from fl.vectors.rows import Row, is_finite

Weights = NDArray[np.float64]

_BITS = 28  # of a code that are added before it is made small again

ManyModels = Literal["", "one", "mixture"]
"""What clients make of all of a rule's models: nothing, one is chosen, or they are mixed."""

Combine = Callable[[Row, Weights, str], Row]
"""F of vectors (n, d) with weights (n,), shape (d,); the name is "" for the model's change."""


class HasModel(Protocol):
    """A server state: a named tuple with the model, and whatever else the rule keeps."""

    @property
    def w(self) -> Row:
        """The model, shape (d,), float32."""

    def _replace(self, **changes: Any) -> Self:
        """Returns a copy with other values."""


def check_state(rule: RoundRule, state: HasModel) -> None:
    """Raises NotFinite if an array of a rule's state is not finite."""
    for value in state:  # type: ignore[attr-defined]
        if isinstance(value, np.ndarray) and not is_finite(value):
            raise NotFinite(f"{type(rule).__name__}: the server's state is not finite")


def weighted_mean(x: Row, weights: Weights, name: str) -> Row:
    """Returns the mean of vectors: what a rule's `mean` is where no aggregator is chosen."""
    return Mean(weighted=True)(x, weights)


def blocks(
    holds: NDArray[np.bool_],
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Yields which clients hold the same numbers of a model, none included, and which these are.

    Args:
        holds: which numbers each client holds, shape (n, d).
    """
    code = np.zeros(holds.shape[1], np.int64)
    for begin in range(0, len(holds), _BITS):
        code = np.unique(code, return_inverse=True)[1]  # below 2**31
        for row in holds[begin : begin + _BITS]:
            code = 2 * code + row
    _, first, which = np.unique(code, return_index=True, return_inverse=True)
    order = np.argsort(which, kind="stable")
    ends = np.cumsum(np.bincount(which))
    for i, numbers in zip(first.tolist(), np.split(order, ends[:-1]), strict=True):
        yield np.flatnonzero(holds[:, i]), numbers


@dataclass(frozen=True, eq=False)
class Updates:
    """What the clients of a round brought.

    Attributes:
        deltas: how client i changed the model it was sent, x_i - w, shape (n, d), float32; of a
            rule with several models, x_i less the one that it was sent.
        weights: what each weighs, such as its number of examples, shape (n,), at least 0.
        metrics: what each reported.
        extras: vectors that came beside the models, shape (n, p) each, by name.
        combine: F, by which vectors of clients become one.
        name: of the vectors, if they are not the models' changes.
        buffers: places in the deltas of what clients change but do not train, as statistics of
            normalisation layers. They are no directions: whatever a rule makes of them is replaced
            by their mean.
        trained: places of what clients train, p numbers together; none are all of them.
        clients: who they are, as the grid numbers them.
        told: what each was told, as the rule's `configs` has it.
        as_selected: whether the weights are those by which the selection is unbiased, which count
            for every rule.
        robust: whether `combine` is more than a mean, because some clients may lie.
        models: which of the rule's models each was sent, or has chosen, n whole numbers.
        holds: which numbers of the model each had, shape (n, d); None if all had all. Their deltas
            are 0 elsewhere, and their mean is that of those who had a number, 0 if nobody had it.
        starts: what each began with, shape (n, d), of a rule whose clients mix models.
        mixtures: the models' shares that each has found, of such a rule; None of a client that was
            sent one mixture.
        weighs: whether `combine` reads the weights.
        public: what the server holds itself, of a rule with `public_examples`.
    """

    deltas: Row
    weights: Weights
    metrics: Sequence[Mapping[str, Any]] = ()
    extras: Mapping[str, Row] = field(default_factory=dict)
    combine: Combine = weighted_mean
    name: str = ""
    buffers: Sequence[slice] = ()
    trained: Sequence[slice] = ()
    robust: bool = False
    clients: Sequence[int] = ()
    told: Sequence[Mapping[str, Any]] = ()
    as_selected: bool = False
    models: Sequence[int] = ()
    holds: NDArray[np.bool_] | None = None
    starts: Row | None = None
    mixtures: Sequence[Mixture | None] = ()
    weighs: bool = True
    public: PublicData | None = None

    def __len__(self) -> int:
        """Returns n."""
        return len(self.weights)

    @cached_property
    def _mean(self) -> Row:
        if self.holds is None:
            return self.combine(self.deltas, self.weights, self.name)
        mean, why_not = np.zeros(self.deltas.shape[1], np.float32), None
        for clients, numbers in blocks(self.holds):
            if not clients.size:
                continue
            own = self.deltas[np.ix_(clients, numbers)]
            try:
                mean[numbers] = self.combine(own, self.weights[clients], self.name)
            except NotFinite:
                raise
            except NoStep as error:  # those who hold these numbers are too few
                why_not = error
        if why_not is not None and not mean.any():
            raise why_not
        return mean

    def mean(self) -> Row:
        """Returns F(delta_1, ..., delta_n), shape (d,): the weighted mean, or the aggregator's.

        Where clients hold parts of the model, F combines each set of numbers that the same clients
        hold by itself; what nobody holds, or too few for F, does not change.
        """
        return self._mean

    def of_trained(self, vector: Row) -> Row:
        """Returns what clients train of a vector of shape (d,), such as `mean()`; shape (p,)."""
        return np.concatenate([vector[p] for p in self.trained]) if self.trained else vector

    def placed(self, vector: Row) -> Row:
        """Returns a vector of what clients train, shape (p,), as one of shape (d,): 0 elsewhere."""
        if not self.trained:
            return vector
        row, done = np.zeros(self.deltas.shape[1], np.float32), 0
        for place in self.trained:
            row[place] = vector[done : done + place.stop - place.start]
            done += place.stop - place.start
        return row

    @property
    def public_data(self) -> PublicData:
        """The server's own examples, of a rule with `public_examples`."""
        assert self.public is not None  # whoever runs the rule has seen to that
        return self.public

    def squared_norms(self) -> NDArray[np.float64]:
        """Returns |delta_i|^2 over what clients train, shape (n,)."""
        squares = np.einsum("nd,nd->n", self.deltas, self.deltas, dtype=np.float64)
        for place in self.buffers:
            part = self.deltas[:, place]
            squares -= np.einsum("nd,nd->n", part, part, dtype=np.float64)
        return np.asarray(np.maximum(squares, 0.0), dtype=np.float64)

    def typical(self, values: NDArray[np.float64]) -> float:
        """Returns the weighted mean of one number of each client, shape (n,); the median if robust.

        What a client reports decides here, and an aggregator does not see it: the mean of such
        numbers would be anything that one of them likes.
        """
        if self.robust:
            return float(np.median(values))
        return float(np.average(values, weights=self.weights))

    def unweighted(self) -> Updates:
        """Returns the same updates, all with weight 1 that weigh anything, or as selected."""
        if self.as_selected:
            return self
        return replace(self, weights=(self.weights > 0).astype(np.float64))

    def scaled(self, factors: NDArray[np.float64]) -> Updates:
        """Returns updates whose i-th delta is multiplied by the i-th factor, shape (n,)."""
        return replace(self, deltas=self.deltas * factors.astype(np.float32)[:, None])

    def less(self, vectors: Row) -> Updates:
        """Returns updates whose i-th delta is less the i-th vector, shape (n, d)."""
        return replace(self, deltas=self.deltas - vectors)

    def of_model(self, j: int) -> Updates:
        """Returns the updates of the clients that began with the rule's model j."""
        return self.some([i for i, model in enumerate(self.models) if model == j], f"model {j}")

    def some(self, of: Sequence[int], name: str) -> Updates:
        """Returns some of the updates, by their places, under a name of their own."""
        of = list(of)
        return replace(
            self,
            deltas=self.deltas[of],
            weights=self.weights[of],
            metrics=[self.metrics[i] for i in of] if self.metrics else (),
            extras={name: vectors[of] for name, vectors in self.extras.items()},
            clients=[self.clients[i] for i in of] if self.clients else (),
            told=[self.told[i] for i in of] if self.told else (),
            models=[self.models[i] for i in of] if self.models else (),
            starts=None if self.starts is None else self.starts[of],
            mixtures=[self.mixtures[i] for i in of] if self.mixtures else (),
            name=name,
        )

    def extra(self, name: str) -> Updates:
        """Returns the clients' vectors of this name, to be combined like their deltas."""
        return replace(self, deltas=self.extras[name], extras={}, name=name, holds=None)

    def metric(self, name: str) -> NDArray[np.float64]:
        """Returns what the clients reported under a name that the rule `reads`, shape (n,)."""
        return np.array([metrics[name] for metrics in self.metrics], dtype=np.float64)


class RoundRule(ABC):
    """A server's step from one round to the next.

    Attributes:
        carries: records of the messages that hold a vector beside the model, shape (p,).
        needs: records of the replies that hold one.
        exact: those of both that no compressor takes, as the method goes wrong by their errors; the
            others are compressed like the model, each by itself.
        reads: metrics of the replies that must be finite numbers; a reply without is left out.
        tells: keys that `configs` writes into every message, to the attribute with the value.
        folds: whether `step` uses the mean of the deltas and nothing else, so that large models
            need not be held all at once.
        everybody: whether a step takes all clients, by what the method is.
        prepares: rounds at the beginning that leave the model as it is, whatever comes.
        prunes: whether the state has a field `mask`, shape (d,), with what the model has; see
            `fl.strategies.sparse`.
        knows_parts: whether it is for clients that hold parts of the model, which it looks at:
            `init_parts` takes the place of `init`.
        resizes: whether clients of each level of capacity are sent a model that is made for them,
            in the form of their part: `models` returns one for each level.
        of_adapters: whether these parts are to be ranks of adapters.
        public_examples: labelled examples that the server holds itself; 0 is none.
        num_models: models that the clients of a round are sent, in cohorts of equal size.
        clients_choose: whether all of them are sent to every client instead, which takes "one" or,
            told to by `mixture-smoothing`, a "mixture". Their first values are independent draws,
            and the state has them in a field `theta`, shape (num_models, d), with each its own
            statistics of normalisation layers.
        client_rule: that the server is for; None is any.
        edges: edge servers that it is for, which have a model each: client i has that of edge
            server i modulo their number; 0 is none. `models` returns as many.
    """

    carries: ClassVar[tuple[str, ...]] = ()
    needs: ClassVar[tuple[str, ...]] = ()
    exact: ClassVar[tuple[str, ...]] = ()
    reads: ClassVar[tuple[str, ...]] = ()
    tells: ClassVar[Mapping[str, str]] = {}
    folds: ClassVar[bool] = True
    everybody: ClassVar[bool] = False
    prepares: ClassVar[int] = 0
    prunes: ClassVar[bool] = False
    knows_parts: ClassVar[bool] = False
    resizes: ClassVar[bool] = False
    of_adapters: ClassVar[bool] = False
    public_examples: int = 0
    num_models: int = 1
    clients_choose: ClassVar[ManyModels] = ""
    client_rule: ClassVar[type[Rule] | None] = None
    edges: int = 0

    @abstractmethod
    def init(self, w: Row, p: int) -> Any:
        """Returns the state before the first round.

        Args:
            w: the initial model, shape (d,).
            p: numbers that clients train, at most d; vectors beside the model have so many.
        """

    def init_parts(self, whole: Whole, parts: Sequence[SubModel | None]) -> Any:
        """Returns the state before the first round, of a rule that `knows_parts`.

        Args:
            whole: the initial model and its units.
            parts: an example of what clients of each level hold; None is all of the model.
        """
        return self.init(whole.w, whole.layout.num_trainable)

    def prepared(self, state: Any, public: PublicData) -> Any:
        """Returns the state before the messages of a round, of a rule with `public_examples`."""
        return state

    @abstractmethod
    def step(self, state: Any, updates: Updates) -> Any:
        """Returns the state after a round.

        Args:
            state: of the last round; not changed.
            updates: of at least one client.
        """

    @property
    def assumes(self) -> Mapping[str, str]:
        """Hyperparameters of the clients that the server's step is made with.

        The key of a message that would replace each, to the rule's attribute with its value.
        """
        return {}

    @property
    def alone(self) -> int:
        """Rounds at the beginning that ask a single client, the first of those that are idle."""
        return 0

    @property
    def may_stay(self) -> str:
        """Which rounds leave the model as it is, and the remedy, for a run that learnt nothing."""
        return ""

    def models(self, state: Any) -> Sequence[Row]:
        """Returns what the cohorts of a round are sent, at most `num_models` of shape (d,)."""
        return [state.w]

    def mixture_for(self, state: Any, node: int) -> Mixture | None:
        """Returns of which mixture of the models a client is sent one; None sends it all of them.

        Of a rule whose clients mix them.
        """
        return None

    def ends_at_edges(self, state: Any) -> bool:
        """Returns whether the next step takes each edge server's sum, and not that of all."""
        return False

    def clusters(self, state: Any) -> Clusters | None:
        """Returns the models of the clusters and who uses which, if clients have several models."""
        return None

    def broadcast(self, state: Any) -> Mapping[str, Row]:
        """Returns the vectors that every message carries beside the model, by name."""
        return {}

    def carried_by(self, config: Mapping[str, Any]) -> tuple[str, ...]:
        """Returns which of them a message carries that says this: all."""
        return self.carries

    def asks_everybody(self, state: Any) -> bool:
        """Returns whether the next round asks all available clients, however many others ask."""
        return False

    def at_rate(self, state: Any, ratio: float) -> Any:
        """Returns the state as it would be had the clients' rate been `ratio` times what it was.

        Called before `step` in rounds whose clients have another rate than those before. A sum of
        their changes over rounds is to be multiplied by it (arXiv:1706.02677, Remark 2); by default
        the state stays as it is.
        """
        return state

    def refuses(self, metrics: Mapping[str, Any]) -> str | None:
        """Returns why a reply with these metrics is of no use, in words; None if it is.

        Args:
            metrics: of a reply, with finite numbers for all that the rule `reads`.
        """
        return None

    def configs(
        self, state: Any, server_round: int, n: int, rng: np.random.Generator
    ) -> Sequence[Mapping[str, Any] | None]:
        """Returns what each of a round's messages says beside the vectors.

        Args:
            state: of the last round.
            server_round: from 1.
            n: messages.
            rng: of this round.

        Returns:
            One mapping for each; None for a client that is not to train after all.
        """
        return [{}] * n
