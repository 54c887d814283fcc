"""Petals: users pass through the blocks of a model that servers over the internet hold in parts.

The rules are `fl.stages.BlockPlacement`, `ShortestTime`, `random_route` and `Bans`; this says what
is sent when. Time alone is passed.
"""

from __future__ import annotations

from typing import Literal

from fl.checks import at_least, is_a, not_negative, positive
from fl.errors import ConfigError
from fl.stages import Bans, BlockPlacement, ShortestTime, TransformerStage
from fl.strategies.drivers.stages.peers import StagePeers
from fl.strategies.drivers.stages.petals_run import PetalsRun
from fl.strategies.drivers.stages.timed import Ended, TimedStages

_WORK = ("inference", "tuning")


class Petals(TimedStages):
    """Servers hold runs of a frozen model's blocks; users go from server to server.

    The first `users` clients are users, all others servers. A server that comes measures its speed,
    chooses the blocks that are served worst, loads them, and serves them; now and then it looks
    whether it is needed more elsewhere. A round is one piece of work of each user:

    - "inference": a session. Its prompt passes through the chain of servers that takes the least
      time, then one token after the other; servers keep the attention caches of what they have
      passed on. Each output goes to the next server at once, and to the user, who keeps it. If a
      server fails, others take over its blocks, and the user sends them all that the session had
      sent it: they replay it, and the session goes on.
    - "tuning": a forward and a backward pass of a batch of prompts, for prompt tuning: weights stay
      as they are, so that the backward pass takes two forward ones, one of them to have the
      activations again. At each block one of the servers is drawn, who hold more rather. Outputs
      come back to the user, who sends them on; a server that fails is replaced, and where several
      take its place in the backward pass, the first do their forward pass again, as nobody has
      their outputs.

    Whoever fails is left out for a while.

    Source: Borzunov et al., arXiv:2209.01188 and 2312.08361; bigscience-workshop/petals. Not as
    there: who is there is known to users every `refresh_s` at the latest; loading blocks takes a
    given time; and users' own work, embedding and head, takes none.

    Args:
        block: what a block costs, as a stage of one layer: `boundary_bits` are those of a number of
            activations on its way.
        num_blocks: of the model.
        held: blocks that a server holds.
        users: clients that are users.
        work: "inference" or "tuning".
        prompt: tokens that a session begins with; of each prompt of a batch.
        tokens: that a session makes.
        batch: prompts in a batch of "tuning".
        least_tokens: a request of fewer takes a server as long as so many: it reads its weights.
        placement: says which blocks a server holds; None is the default, for `num_blocks`.
        routing: finds chains for sessions.
        bans: of servers that fail.
        network_bps: that servers say their network has, bit/s, as if unmeasured.
        load_s: that it takes a server to load its blocks, s.
        balance_s: mean time between two looks of a server whether it is needed elsewhere, s.
        refresh_s: s between two looks at who is there.
        patience: a server's work is given up that takes so many times its longest; None: never.
        seed: of routes and times.

    Raises:
        ConfigError: an argument is out of its range.
    """

    def __init__(
        self,
        block: TransformerStage,
        *,
        num_blocks: int = 24,
        held: int = 8,
        users: int = 1,
        work: Literal["inference", "tuning"] = "inference",
        prompt: int = 128,
        tokens: int = 32,
        batch: int = 8,
        least_tokens: int = 64,
        placement: BlockPlacement | None = None,
        routing: ShortestTime | None = None,
        bans: Bans | None = None,
        network_bps: float = 100e6,
        load_s: float = 60.0,
        balance_s: float = 120.0,
        refresh_s: float = 30.0,
        patience: float | None = None,
        seed: int = 0,
    ) -> None:
        is_a("block", block, TransformerStage)
        for name, value in (
            ("num_blocks", num_blocks),
            ("held", held),
            ("users", users),
            ("prompt", prompt),
            ("tokens", tokens),
            ("batch", batch),
            ("least_tokens", least_tokens),
        ):
            at_least(name, value, 1)
        if block.layers != 1 or held > num_blocks:
            raise ConfigError(
                f"block.layers is {block.layers} and held {held}; a block is one layer, and a "
                f"server holds at most all {num_blocks} blocks"
            )
        if work not in _WORK:
            raise ConfigError(f"work is {work!r}; it must be one of {', '.join(_WORK)}")
        for name, amount in (
            ("network_bps", network_bps),
            ("balance_s", balance_s),
        ):
            positive(name, amount)
        not_negative("load_s", load_s)
        super().__init__(refresh_s=refresh_s, patience=patience, seed=seed)
        self.block = block
        self.num_blocks = num_blocks
        self.held = held
        self.users = users
        self.work = work
        self.prompt = prompt
        self.tokens = tokens
        self.batch = batch
        self.least_tokens = least_tokens
        self.placement = BlockPlacement(num_blocks) if placement is None else placement
        is_a("placement", self.placement, BlockPlacement)
        if self.placement.num_blocks != num_blocks:
            raise ConfigError(
                f"placement.num_blocks is {self.placement.num_blocks}, and num_blocks "
                f"{num_blocks}; they are of one model and must be equal: set num_blocks alone"
            )
        self.routing = ShortestTime() if routing is None else routing
        is_a("routing", self.routing, ShortestTime)
        self.bans = Bans() if bans is None else bans
        is_a("bans", self.bans, Bans)
        self.network_bps = network_bps
        self.load_s = load_s
        self.balance_s = balance_s

    def check_clients(self, num_clients: int) -> None:
        """Raises ConfigError if the servers among them cannot hold all blocks."""
        servers, needed = num_clients - self.users, -(-self.num_blocks // self.held)
        if servers * self.held < self.num_blocks:
            raise ConfigError(
                f"num_clients is {num_clients}, of which {self.users} are users: {max(0, servers)} "
                f"servers of {self.held} blocks cannot hold {self.num_blocks}; set "
                f"num_clients={self.users + needed} or more"
            )

    def begin(self, peers: StagePeers, ended: Ended) -> PetalsRun:
        """Returns what passes the time."""
        self.last = PetalsRun(self, peers, ended)
        return self.last
