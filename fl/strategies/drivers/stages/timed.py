"""What strategies have in common that pass the time of stages, and train nothing."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from flwr.app import ArrayRecord, ConfigRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result

from fl.checks import at_least, positive
from fl.strategies.drivers.driver import Driver, Traits
from fl.strategies.drivers.events.events import EvaluateFn
from fl.strategies.drivers.stages.peers import StagePeers

Ended = Callable[[int, Mapping[str, float]], None]
"""Is told the number of a round that has ended, from 1, and what was measured in it."""


class StagesRun(Protocol):
    """What passes the time of a run."""

    def run(self, num_rounds: int, /) -> None:
        """Passes so many rounds."""


class TimedStages(Driver):
    """Peers that hold stages of a model which is not here; time alone is passed.

    Args:
        refresh_s: s between two looks at who is there.
        patience: work is given up that takes so many times its peer's longest, see
            `fl.strategies.drivers.patience`; None waits for ever.
        seed: of the run.

    Raises:
        ConfigError: an argument is out of its range.
    """

    def __init__(self, *, refresh_s: float, patience: float | None, seed: int) -> None:
        positive("refresh_s", refresh_s)
        if patience is not None:
            positive("patience", patience)
        self.refresh_s = refresh_s
        self.patience = patience
        self.seed = seed

    @property
    def traits(self) -> Traits:
        """What the strategy is."""
        return Traits(meets="peers", compressors="none", downlink=False, learns=False)

    @abstractmethod
    def begin(self, peers: StagePeers, ended: Ended) -> StagesRun:
        """Returns what passes the time, among peers that are enough."""

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: EvaluateFn | None = None,
    ) -> Result:
        """Passes rounds.

        Args:
            grid: the simulator's.
            initial_arrays: a model, which stays as it is.
            num_rounds: optimizer steps, or pieces of work of each user.
            timeout: not used: see `patience`.
            train_config: not used: nothing is trained.
            evaluate_config: not used.
            evaluate_fn: called with each round and the model.

        Raises:
            ConfigError: an argument is out of its range, there are too few clients, or the grid is
                a deployment.
            SimulationError: peers do nothing but fail, or too few come.
        """
        at_least("num_rounds", num_rounds, 1)
        peers = StagePeers(grid, self.patience, self.name)
        self.check_clients(len(peers))
        result = Result(arrays=initial_arrays)
        control = peers.tasks.control

        def ended(t: int, measured: Mapping[str, float]) -> None:
            if measured:
                control.measured(measured)
            if t:
                control.stepped(t)
            metrics: Any = evaluate_fn(t, initial_arrays) if evaluate_fn else None
            if metrics is not None:
                result.evaluate_metrics_serverapp[t] = metrics

        ended(0, {})
        self.begin(peers, ended).run(num_rounds)
        return result
