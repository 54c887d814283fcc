"""SWARM: a pipeline's micro-batches find their way through peers that come, go and fail.

The rules are `fl.stages.StochasticWiring`, `Rebalancing` and `MicroBatch`; this says what is sent
when, and what becomes of it where peers are away, fail, or lose a message. Time alone is passed.
"""

from __future__ import annotations

from fl.checks import at_least, boolean, is_a
from fl.collectives import Collective, Failure, RingAllReduce
from fl.errors import ConfigError
from fl.stages import Rebalancing, StochasticWiring, TransformerStage
from fl.strategies.drivers.stages.peers import StagePeers
from fl.strategies.drivers.stages.swarm_run import SwarmRun
from fl.strategies.drivers.stages.timed import Ended, TimedStages


class SWARM(TimedStages):
    """Pipelines that are wired anew for every micro-batch, of peers of which each holds one stage.

    A micro-batch is sent forward through the S stages and back, from peer to peer; at each stage
    `wiring` says to which. A stage's gradient adds up at its peers until a step's micro-batches
    have all been through; then the peers of each stage all-reduce, and all take the step.

    Whoever fails at a pass, or is away when it is needed, is banned: what it had of the step's
    micro-batches is lost, and done again by others as far as it is needed. Every `refresh_s` it is
    looked who is there: who was banned, has come back or is new joins, once it has downloaded its
    stage. A pass that takes much longer than its peer's others is given to another peer, and the
    first is not banned. A micro-batch so counts exactly once in the gradient of each stage.

    It trains nothing: models for which such pipelines are made do not fit here. What a stage costs
    is declared. `strategy=pipeline` trains through stages.

    Source: Ryabinin, Dettmers, Diskin, Borzunov, "SWARM Parallelism: Training Large Models Can Be
    Surprisingly Communication-Efficient", ICML 2023, arXiv:2301.11913; yandex-research/swarm. Not
    as there: a payload goes from peer to peer at once, where in that code a trainer passes it on;
    and as nobody else has it, it is computed again if its holder leaves. A backward pass gets the
    stage's input again unless the same peer did the forward pass, there always. A gradient counts
    if its answer came: there, a peer whose answer is late has added it up all the same. A download
    has half of its source's uplink, whatever else passes it. Rounds are optimizer steps.

    Args:
        stage: what each of the stages costs.
        num_stages: S, at least 2.
        micro_batches: of a step, together; None is four times the number of clients.
        in_flight: micro-batches on their way at a time; None is twice the number of clients.
        wiring: says which peer of a stage is next.
        rebalancing: says who moves from stage to stage, and where who joins is needed; None: nobody
            moves, and client i belongs to stage i mod S.
        allreduce: how the peers of a stage come to have their mean.
        delayed: the next step's passes begin while the peers all-reduce, with the weights of
            before: delayed parameter updates.
        detection_s: until the others notice who leaves during an all-reduce, s.
        refresh_s: s between two looks at who is there.
        patience: a pass is given up that takes so many times its peer's longest, see
            `fl.strategies.drivers.patience`; None waits for ever.
        seed: of ties.

    Raises:
        ConfigError: an argument is out of its range.
    """

    def __init__(
        self,
        stage: TransformerStage,
        *,
        num_stages: int = 4,
        micro_batches: int | None = None,
        in_flight: int | None = None,
        wiring: StochasticWiring | None = None,
        rebalancing: Rebalancing | None = None,
        allreduce: Collective | None = None,
        delayed: bool = False,
        detection_s: float = 10.0,
        refresh_s: float = 30.0,
        patience: float | None = 10.0,
        seed: int = 0,
    ) -> None:
        is_a("stage", stage, TransformerStage)
        at_least("num_stages", num_stages, 2)
        for name, number in (("micro_batches", micro_batches), ("in_flight", in_flight)):
            if number is not None:
                at_least(name, number, 1)
        boolean("delayed", delayed)
        super().__init__(refresh_s=refresh_s, patience=patience, seed=seed)
        self.stage = stage
        self.num_stages = num_stages
        self.micro_batches = micro_batches
        self.in_flight = in_flight
        self.wiring = StochasticWiring() if wiring is None else wiring
        is_a("wiring", self.wiring, StochasticWiring)
        self.rebalancing = rebalancing
        if rebalancing is not None:
            is_a("rebalancing", rebalancing, Rebalancing)
        self.allreduce = RingAllReduce() if allreduce is None else allreduce
        is_a("allreduce", self.allreduce, Collective)
        self.delayed = delayed
        self.failure = Failure("retry", detection_s)

    def check_clients(self, num_clients: int) -> None:
        """Raises ConfigError if there are fewer clients than stages."""
        if num_clients < self.num_stages:
            raise ConfigError(
                f"num_clients is {num_clients}, but there are {self.num_stages} stages, each of "
                f"which a peer holds: set num_clients={self.num_stages} or more, or "
                f"strategy.num_stages={max(2, num_clients)}"
            )

    def begin(self, peers: StagePeers, ended: Ended) -> SwarmRun:
        """Returns what passes the time."""
        self.last = SwarmRun(self, peers, ended)
        return self.last
