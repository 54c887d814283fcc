"""How often clients take part, by what labels they have."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from fl.checks import positive
from fl.data.federated import Source, Split
from fl.errors import ConfigError
from fl.randomness import generator


def participation_rates(
    data: Callable[[], Source],
    partition: Callable[[Source], Split],
    *,
    num_clients: int,
    seed: int,
    mean: float = 0.1,
    least: float = 0.02,
    concentration: float = 0.1,
) -> NDArray[np.float64]:
    """Returns rates of participation that go with the clients' labels, shape (num_clients,).

        p_n = min(1, max(least, mean L <q_n, r>)),    r ~ Dirichlet(concentration)

    with L the number of labels and q_n the shares of the labels among client n's examples: clients
    with labels that r favours take part more often (arXiv:2306.03401, section 6, as in the authors'
    code, which does not cut off at 1). Clients without examples have the least rate.

    Args:
        data: as the group `data` of the configuration gives it.
        partition: likewise.
        num_clients: N; client n has partition n modulo their number.
        seed: of r.
        mean: of the rates, if all labels are as frequent and nothing is cut off; at most 1.
        least: smallest rate, above 0 and at most `mean`.
        concentration: above 0; the smaller, the fewer labels are favoured.

    Raises:
        ConfigError: an argument is out of its range, or examples have no single label.
    """
    for name, value in (("mean", mean), ("least", least), ("concentration", concentration)):
        positive(name, value)
    if mean > 1:
        raise ConfigError(f"mean is {mean}; it must be at most 1")
    if least > mean:
        raise ConfigError(f"least is {least}; it must be at most mean, {mean}")
    source = data()
    y = source.train.y
    if y.ndim != 1 or y.dtype != np.int64:
        raise ConfigError(
            f"rates by labels need one label for an example, and {source.name} has none"
        )
    partitions = partition(source).train
    counts = np.stack(
        [
            np.bincount(y[partitions[n % len(partitions)]], minlength=source.num_classes)
            for n in range(num_clients)
        ]
    ).astype(np.float64)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    favour = generator(seed, "participation").dirichlet(np.full(counts.shape[1], concentration))
    rates = mean * counts.shape[1] * (shares @ favour)
    return np.asarray(np.clip(rates, least, 1.0), dtype=np.float64)
