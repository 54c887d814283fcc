"""FedConv: the server learns, on public data, filters that make its model smaller and larger.

FedConv (MobiSys 2024): the paper's text was not at hand. Rules by the authors' code,
lemingshen/FedConv; docs/partial_models.md has what is other here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fl.checks import at_least, not_negative, positive
from fl.errors import NoStep
from fl.strategies.public_data import PublicData
from fl.strategies.round_rule import RoundRule, Updates
from fl.submodels import Filter, Filters, Resizing, SubModel, Whole
from fl.vectors.layout import Layout
from fl.vectors.rows import Row, as_tensor


class FedConvState(NamedTuple):
    """The model, and what the server has learnt beside it.

    Attributes:
        w: the model, shape (d,).
        layout: of the model.
        parts: whose shapes the models of the levels have; None is the whole.
        filters: by level, but of the whole.
        sent: what clients of each level are sent, shape (d,), 0 where their part has nothing.
        dilations: filters that make a client's model as large as the server's, by node.
        omega: weights of a client's numbers, shape (d,), by node.
        t: rounds that were made ready.
    """

    w: Row
    layout: Layout
    parts: Sequence[SubModel | None]
    filters: Mapping[int, Filters] = {}
    sent: Sequence[Row] = ()
    dilations: Mapping[int, Filters] = {}
    omega: Mapping[int, Row] = {}
    t: int = 0


@dataclass(frozen=True)
class FedConv(RoundRule):
    """Compression of the model by learnt convolutions, and learnt dilation of what comes back.

    Before a round the server trains on its public data: the model, then, for each smaller size s,
    filters F_s through which the model is made small. Clients train what they are sent, and know of
    no filters. Of the models y_i that come back, the server trains each on its data, then filters
    G_i that make it large, then weights of all numbers:

        w_s = F_s(w);   W_i = G_i(y_i), or y_i if it is large
        w <- sum_i n_i (omega_i * W_i) / sum_i n_i

    The loss that all these reduce is the model's on the public data. A filter is, of the image x of
    a weight at each place of its kernel,

        F(x) = phi(K * (a x + b [+ x, of convolutions])),   phi(v) = p v if v > 0, else q v

    with K of as many rows and columns as it takes for * to return the smaller image; G has the
    transposed convolution (`fl.submodels.Resizing`). F_s, G_i and omega_i are kept, and go on
    learning from round to round.

    Attributes:
        public_examples: labelled, that the server holds.
        batch_size: of the server's steps.
        server_epochs: of the server on the model and on what comes back.
        server_lr: likewise.
        filter_epochs: on F and G.
        filter_lr: likewise; halved every `halve_every` rounds.
        weight_epochs: on omega.
        weight_lr: likewise.
        halve_every: rounds, at least 1.
        positive_slope: p.
        negative_slope: q.

    Raises:
        ConfigError: a hyperparameter is out of range.
    """

    folds: ClassVar[bool] = False
    knows_parts: ClassVar[bool] = True
    resizes: ClassVar[bool] = True

    public_examples: int = 200
    batch_size: int = 32
    server_epochs: int = 10
    server_lr: float = 1e-4
    filter_epochs: int = 10
    filter_lr: float = 1e-3
    weight_epochs: int = 20
    weight_lr: float = 1e-3
    halve_every: int = 25
    positive_slope: float = 0.85
    negative_slope: float = 1e-3

    def __post_init__(self) -> None:
        for name in ("public_examples", "batch_size", "halve_every"):
            at_least(name, getattr(self, name), 1)
        for name in ("server_epochs", "filter_epochs", "weight_epochs"):
            at_least(name, getattr(self, name), 0)
        for name in ("server_lr", "filter_lr", "weight_lr"):
            positive(name, getattr(self, name))
        for name in ("positive_slope", "negative_slope"):
            not_negative(name, getattr(self, name))

    def init(self, w: Row, p: int) -> FedConvState:
        """Returns the model without sizes; `init_parts` has them."""
        return FedConvState(w, Layout.of_vector("w", len(w)), (None,))

    def init_parts(self, whole: Whole, parts: Sequence[SubModel | None]) -> FedConvState:
        """Returns the state before the first round."""
        return FedConvState(whole.w, whole.layout, parts)

    def models(self, state: FedConvState) -> Sequence[Row]:
        """Returns what clients of each level are sent."""
        return state.sent

    def prepared(self, state: FedConvState, public: PublicData) -> FedConvState:
        """Returns the state with what clients are sent in the next round."""
        t = state.t + 1
        w = self._trained(state.w, None, public, "model", t)
        filters, sent = dict(state.filters), []
        for s, part in enumerate(state.parts):
            if part is None:
                sent.append(w)
                continue
            resizing, row = self._resizing(state, part), as_tensor(w)
            F_s = filters.get(s) or resizing.drawn(public.draws("compression", s))
            small = partial(resizing.small, w=row)
            filters[s] = self._fitted(F_s, small, part, public, t, "compression", s)
            small_w = small(filters[s]).numpy()
            sent.append(part.put(np.zeros_like(w), small_w))
        return state._replace(filters=filters, sent=sent, t=t)

    def step(self, state: FedConvState, updates: Updates) -> FedConvState:
        """Returns the model that is made of the clients' models, and what was learnt for that."""
        public, t = updates.public_data, state.t
        with_examples = np.flatnonzero(updates.weights).tolist()
        if not with_examples:
            raise NoStep("no client has examples")
        updates = updates.some(with_examples, updates.name)
        dilations, large = dict(state.dilations), []
        for i, s, delta in zip(updates.clients, updates.models, updates.deltas, strict=True):
            part, y = state.parts[s], state.sent[s] + delta
            y = self._trained(y if part is None else part.of(y), part, public, "client", i, t)
            if part is not None:
                resizing, row = self._resizing(state, part), as_tensor(y)
                G_i = dilations.get(i) or resizing.drawn(public.draws("dilation", i))
                dilated = partial(resizing.large, y=row)
                dilations[i] = self._fitted(G_i, dilated, None, public, t, "dilation", i)
                y = dilated(dilations[i]).numpy()
            large.append(y)
        W = np.stack(large)
        omega = self._weights(state, updates, W)
        kept = {**state.omega, **dict(zip(updates.clients, omega, strict=True))}
        combined = replace(updates, deltas=omega * W - state.w, holds=None).mean()
        return state._replace(w=state.w + combined, dilations=dilations, omega=kept)

    def _resizing(self, state: FedConvState, part: SubModel) -> Resizing:
        return Resizing(state.layout, part, self.positive_slope, self.negative_slope)

    def _trained(self, x: Row, part: SubModel | None, public: PublicData, *key: int | str) -> Row:
        """Returns a model, shape (d,), or a part of this shape, trained on the public data."""
        row = torch.tensor(x, requires_grad=True)
        lr, epochs, size = self.server_lr, self.server_epochs, self.batch_size
        public.fit([row], lambda: row, part, epochs=epochs, lr=lr, batch_size=size, key=key)
        made: Row = row.detach().numpy()
        return made

    def _fitted(
        self,
        filters: Filters,
        model: Callable[[Filters], Tensor],
        part: SubModel | None,
        public: PublicData,
        t: int,
        *key: int | str,
    ) -> Filters:
        """Returns filters that have learnt to make a model that is good on the public data.

        Args:
            filters: before.
            model: what they make.
            part: whose shape it has.
            public: the data.
            t: round.
            key: names the draws.
        """
        leaves = {
            name: Filter(*(tensor.clone().requires_grad_() for tensor in filter))
            for name, filter in filters.items()
        }
        public.fit(
            [tensor for filter in leaves.values() for tensor in filter],
            lambda: model(leaves),
            part,
            epochs=self.filter_epochs,
            lr=self._halved(self.filter_lr, t),
            batch_size=self.batch_size,
            key=(*key, t),
        )
        return {name: Filter(*(x.detach() for x in filter)) for name, filter in leaves.items()}

    def _weights(self, state: FedConvState, updates: Updates, W: Row) -> Row:
        """Returns omega of the clients of a round, shape (n, d)."""
        ones, models = np.ones_like(state.w), torch.from_numpy(W)
        omega = torch.tensor(np.stack([state.omega.get(i, ones) for i in updates.clients]))
        n = torch.from_numpy((updates.weights / updates.weights.sum()).astype(np.float32))
        omega.requires_grad_()
        updates.public_data.fit(
            [omega],
            lambda: torch.einsum("n,nd,nd->d", n, omega, models),
            None,
            epochs=self.weight_epochs,
            lr=self._halved(self.weight_lr, state.t),
            batch_size=self.batch_size,
            key=("weights", state.t),
        )
        made: Row = omega.detach().numpy()
        return made

    def _halved(self, lr: float, t: int) -> float:
        """Returns a rate in round t, from 1."""
        return lr * 0.5 ** (t // self.halve_every)
