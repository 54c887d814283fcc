"""FLTrust: updates are trusted as far as they point where an update on clean data points.

Cao, Fang, Liu, Gong: FLTrust: Byzantine-robust Federated Learning via Trust Bootstrapping, NDSS
2021, arXiv:2012.13995, Algorithm 2.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fl.aggregation.aggregator import Aggregator, Context, Invariances, Reference
from fl.aggregation.gram import Array
from fl.aggregation.rows import Rows
from fl.errors import ConfigError, NotFinite


@dataclass(frozen=True)
class FLTrust(Aggregator):
    """Averages the updates, all rescaled to the length of the trusted one, by their trust scores.

        TS_i = max(0, cos(g_i, g_0)),    g = sum_i TS_i (|g_0| / |g_i|) g_i / sum_i TS_i

    g_0 is the update of the server's own small set of clean data; the caller passes it as
    `reference`. Tolerates any number of Byzantine updates. The cosine is over the whole vector. A
    zero update has score 0; if all scores are 0, where the formula is undefined, g is zero and the
    model stays.
    """

    @property
    def reference(self) -> Reference:
        """g_0."""
        return "trusted-update"

    @property
    def invariances(self) -> Invariances:
        """The result has the scale of g_0, whatever that of the updates."""
        return frozenset({"permutation", "rotation", "resilient"})

    def tolerates(self, n: int) -> int:
        """Returns n - 1: one update has to be left."""
        return n - 1

    def apply(self, rows: Rows, context: Context) -> Array:
        """Returns g, shape (d,)."""
        g0 = context.reference
        if g0 is None:
            raise ConfigError(
                "FLTrust: there is no trusted update: pass the update of the server's own data as "
                "reference"
            )
        norms = rows.norms
        g0_norm = float(np.linalg.norm(g0.astype(np.float64)))
        if not np.isfinite(g0_norm):
            raise NotFinite("FLTrust: the trusted update is not finite: lower its learning rate")
        lengths = norms * g0_norm
        cosines = rows.inner(g0) / np.where(lengths > 0, lengths, np.inf)
        scores = np.maximum(0.0, cosines)
        if scores.sum() == 0.0:
            return rows.combine(np.zeros(len(rows)))
        a = scores / scores.sum() * g0_norm / np.where(norms > 0, norms, np.inf)
        return rows.combine(a)
