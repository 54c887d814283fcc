"""QuAFL: the server and a few interrupted clients average their models.

Zakerinia, Talaei, Nadiradze, Alistarh, "Communication-Efficient Federated Learning With Data and
Client Heterogeneity" (first titled QuAFL), arXiv:2206.10032, Algorithm 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fl.strategies.drivers.contacts import Contacts
from fl.strategies.drivers.events import Server, Update
from fl.vectors.rows import Row


class QuAFL(Contacts):
    """Averages the server's model with those of interrupted clients, and each of these with it.

    At every contact with a set S of s clients,

        server:      X   <- (X + sum_{i in S} Y_i) / (s + 1)
        client i:    X_i <- (X + s Y_i) / (s + 1),    X the server's model before

    where Y_i is client i's model after at most K steps from X_i.

    The paper sends Q(X) down, Q(Y_i) up, with a lattice quantiser that decodes relative to the
    receiver's own model. Here the server follows X_i and sends it, which is as many bytes; what the
    client answers is compressed as its change of X_i, which both sides hold, by
    `compressor=...` (uniform or QSGD are near the paper's). The server keeps one model for every
    client ever contacted.

    Args:
        **contacts: arguments of `Contacts`.

    Raises:
        ConfigError: an argument is out of its range.
    """

    def merge(self, server: Server, answers: Sequence[Update]) -> tuple[Row, dict[int, Row]]:
        """Averages as above."""
        s, x = len(answers), server.w
        total = x
        for update in answers:
            total = total + update.x
        places = {u.node: np.float32(1 / (s + 1)) * (x + np.float32(s) * u.x) for u in answers}
        return total / np.float32(s + 1), places
