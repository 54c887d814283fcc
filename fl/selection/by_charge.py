"""Selection by charge: clients with fuller batteries train more often."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from fl.checks import not_negative
from fl.errors import ConfigError
from fl.selection.selection import Choice, Opening, Selection, weighted_sample

_LEAST = 1e-6  # of charge: an empty battery is drawn as well, after all others
_MOST = 1e6  # alpha: the fullest are chosen long before, and their order is drawn in ties alone


@dataclass(frozen=True)
class ByCharge(Selection):
    """Draws clients without replacement in proportion to charge^alpha.

    The law is that of public code (nozzolillo01/battery-aware-federated-learning, alpha = 2); with
    alpha = 0 it is uniform. Clients below the fleet's threshold are not available, whoever selects.

    Attributes:
        alpha: in [0, 1e6].

    Raises:
        ConfigError: alpha is out of its range.
    """

    by_charge: ClassVar[bool] = True

    alpha: float = 2.0

    def __post_init__(self) -> None:
        not_negative("alpha", self.alpha)
        if self.alpha > _MOST:
            raise ConfigError(f"alpha is {self.alpha}; it must be at most {_MOST:g}")

    def select(self, state: Any, opening: Opening) -> tuple[Choice, Any]:
        """Returns the clients that are drawn.

        Raises:
            ConfigError: nobody knows of batteries.
        """
        charge = opening.charge(opening.idle)
        if charge is None:
            raise ConfigError(
                "selection=by_charge goes by the charge of the clients' batteries, and there are "
                "none, or a deployment, where nobody tells: set battery=phone, for example"
            )
        log_weights = self.alpha * np.log(charge.clip(_LEAST))
        count = min(opening.count, len(opening.idle))
        places = weighted_sample(opening.rng("by_charge"), log_weights, count)
        return Choice([opening.idle[i] for i in places.tolist()]), state
