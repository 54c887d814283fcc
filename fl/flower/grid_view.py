"""What a strategy asks of a grid beyond Flower's API: time, orders and reports, links of peers.

A grid that has an answer of its own has it as the attribute `clock`, `control`, `peers`,
`summation`, `numbered`, `arrived`, `cohorts`, `present`, `charge` or `snapshots`. To `GridView`
every grid has all of them; Flower's own get those of a deployment:

- the wall clock;
- a control without effect: a client that was told to stop goes on, and its reply is thrown away;
- the server as the relay between clients, since Flower has no client-to-client link;
- no machines that add updates up before the server does;
- node ids that say nothing;
- replies of which nobody knows before they are pulled;
- no cohorts whose answers are known before they are asked;
- no batteries;
- nobody who keeps what there is between rounds.

On the simulator the clock is virtual, orders reach the fleet, reports the record of the run, and
what peers send each other is charged to the direct path between them.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from flwr.app import Message, RecordDict
from flwr.serverapp import Grid
from numpy.typing import NDArray

from fl.collectives import Collective, Failure
from fl.errors import NoStep
from fl.vectors.rows import Row
from fl.vectors.sum_tree import SumTree

log = logging.getLogger("fl")


class GridView:
    """A grid, with an answer to all that strategies ask.

    Args:
        grid: any.
    """

    def __init__(self, grid: Grid) -> None:
        self._grid = grid

    @property
    def clock(self) -> Clock:
        """The grid's own clock, or the wall's."""
        clock: Clock | None = getattr(self._grid, "clock", None)
        return WallClock() if clock is None else clock

    @property
    def control(self) -> Control:
        """The grid's own control, or one without effect."""
        control: Control | None = getattr(self._grid, "control", None)
        return NoControl() if control is None else control

    @property
    def peers(self) -> Peers:
        """The grid's direct links among its clients, or a relay."""
        peers: Peers | None = getattr(self._grid, "peers", None)
        return Relayed(self._grid) if peers is None else peers

    @property
    def summation(self) -> Summation | None:
        """What adds updates up on their way; None where clients send to the server alone."""
        summation: Summation | None = getattr(self._grid, "summation", None)
        return summation

    @property
    def numbered(self) -> bool:
        """Whether node ids say which client it is (`fl.flower.identity.client_of`)."""
        numbered: bool = getattr(self._grid, "numbered", False)
        return numbered

    @property
    def cohorts(self) -> Cohorts | None:
        """What has cohorts answer without messages; None if nothing does."""
        cohorts: Cohorts | None = getattr(self._grid, "cohorts", None)
        return cohorts

    @property
    def snapshots(self) -> Snapshots | None:
        """Who keeps what there is between rounds; None if nobody does."""
        snapshots: Snapshots | None = getattr(self._grid, "snapshots", None)
        return snapshots

    def nodes(self) -> Sequence[int]:
        """Returns the Flower ids of the clients that are available now, which nobody may change.

        On the simulator, which is asked after every event, they are in ascending order, and the
        same object where nobody has come or gone.
        """
        present: Callable[[], Sequence[int]] | None = getattr(self._grid, "present", None)
        return list(self._grid.get_node_ids()) if present is None else present()

    def charge(self, nodes: Sequence[int]) -> NDArray[np.float64] | None:
        """Returns the charge of clients' batteries, in [0, 1], shape (n,); None if nobody knows.

        Args:
            nodes: Flower ids of clients.
        """
        charge: Callable[[Sequence[int]], NDArray[np.float64] | None] | None
        charge = getattr(self._grid, "charge", None)
        return None if charge is None else charge(nodes)

    def arrived(self, message_ids: Collection[str]) -> Collection[str]:
        """Returns those messages whose reply may be there to be pulled.

        Who waits for many asks after every event: to pull all of them each time would be work for
        each of those that are still on their way.

        Args:
            message_ids: of messages that were pushed, each pulled at most once so far.
        """
        arrived: Collection[str] | None = getattr(self._grid, "arrived", None)
        if arrived is None:
            return message_ids
        return [name for name in arrived if name in message_ids]


# ---- time ----------------------------------------------------------------------------------------


class Clock(Protocol):
    """What a strategy that waits may ask of time.

    Attributes:
        virtual: whether it is the simulator's, so that nothing happens but what is simulated.
    """

    virtual: bool

    def now(self) -> float:
        """Returns the time in s since an arbitrary but fixed origin."""

    def elapsed(self) -> float:
        """Returns the time in s for those who wait for the run, who see where it stands still."""

    def sleep(self, seconds: float) -> None:
        """Lets `seconds` pass."""

    def wait(self, until: float) -> None:
        """Lets time pass until a reply may have arrived, at most until `until`."""


class WallClock:
    """The host's own time.

    Args:
        poll_s: how long `wait` sleeps before somebody looks whether a reply is there.
    """

    virtual = False

    def __init__(self, poll_s: float = 0.2) -> None:
        self.poll_s = poll_s

    def now(self) -> float:
        """Returns the host's monotonic time in s."""
        return time.monotonic()

    def elapsed(self) -> float:
        """Returns the same."""
        return self.now()

    def sleep(self, seconds: float) -> None:
        """Blocks for `seconds`."""
        time.sleep(seconds)

    def wait(self, until: float) -> None:
        """Blocks for `poll_s`, or until `until` if that is sooner."""
        time.sleep(max(0.0, min(self.poll_s, until - self.now())))


# ---- orders and reports --------------------------------------------------------------------------


class Control(Protocol):
    """Orders and reports of a strategy."""

    def cancel(self, message_id: str) -> bool:
        """Tells the client that has this message to stop.

        Returns:
            Whether no reply can come any more; if not, it must still be pulled.
        """

    def applied(
        self, message_id: str, age: int, metrics: Mapping[str, Any], *, polled: bool = False
    ) -> None:
        """Reports that the reply to a message entered the server's model.

        Args:
            message_id: of the message.
            age: server versions since the one that the client began with.
            metrics: what the client reported.
            polled: whether the server asked for what the client had, whenever it began: then the
                age is the gap since the last poll, else the staleness of an update that arrived.
        """

    def applied_at_once(
        self, message_ids: Sequence[str], metrics: Sequence[Mapping[str, Any]]
    ) -> None:
        """Reports that replies entered the server's model that are of the version before, in order.

        Args:
            message_ids: of the messages.
            metrics: what each client reported.
        """

    def discarded(self, message_id: str, staleness: int) -> None:
        """Reports that the reply to a message was not used."""

    def rejected(self, message_id: str) -> None:
        """Reports that the reply to a message was no valid one: a fault."""

    def forged(self, message_id: str) -> None:
        """Reports that the reply to a message was replaced by an attack: a fault."""

    def absent(self, node: int, server_round: int) -> None:
        """Reports that a client, by its Flower id, takes no part in a round: a fault."""

    def stepped(self, server_round: int, why_not: NoStep | None = None, *, model: str = "") -> None:
        """Reports that a round has changed the model, or that it has left it as it is: a fault.

        Args:
            server_round: the round, or the version of the model that the step would have made.
            why_not: why the model stays as it is; None if it has changed.
            model: its name, where there are several.
        """

    def measured(self, metrics: Mapping[str, float]) -> None:
        """Reports what a strategy has measured, for the next row of the run's record."""


class NoControl:
    """A deployment: nobody listens."""

    def cancel(self, message_id: str) -> bool:
        """Returns False: the client goes on."""
        return False

    def applied(
        self, message_id: str, age: int, metrics: Mapping[str, Any], *, polled: bool = False
    ) -> None:
        """Does nothing."""

    def applied_at_once(
        self, message_ids: Sequence[str], metrics: Sequence[Mapping[str, Any]]
    ) -> None:
        """Does nothing."""

    def discarded(self, message_id: str, staleness: int) -> None:
        """Does nothing."""

    def rejected(self, message_id: str) -> None:
        """Does nothing."""

    def forged(self, message_id: str) -> None:
        """Does nothing."""

    def absent(self, node: int, server_round: int) -> None:
        """Does nothing."""

    def stepped(self, server_round: int, why_not: NoStep | None = None, *, model: str = "") -> None:
        """Logs why a round leaves the model as it is."""
        if why_not is not None:
            log.warning("round %d leaves the model as it is: %s", server_round, why_not)

    def measured(self, metrics: Mapping[str, float]) -> None:
        """Logs what has been measured."""
        log.info("measured: %s", ", ".join(f"{name} {x:.6g}" for name, x in metrics.items()))


# ---- cohorts -------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Outcome:
    """What came of a cohort, at the end of which the grid is.

    Attributes:
        nodes: Flower ids of the clients, in the order of sending, shape (n,).
        answered: whose reply has come, shape (n,).
        metrics: what they report, k different ones.
        which: of these each client's, shape (n,).
        failed_at_last: error codes and reasons of the clients that failed after the last that has
            not, with their numbers.
    """

    nodes: NDArray[np.int64]
    answered: NDArray[np.bool_]
    metrics: Sequence[Mapping[str, Any]]
    which: NDArray[np.int64]
    failed_at_last: Mapping[tuple[int, str], int]


@dataclass(frozen=True, eq=False)
class CohortReplies:
    """What came of a cohort that has trained: columns of replies, in the order of their coming.

    Attributes:
        message_ids: of the messages.
        nodes: Flower ids of the clients.
        received_s: when each reply came, s.
        rows: the models, finite, shape (d,), float32, read-only, as the message has them.
        metrics: what each client reports.
        failed_at_last: as of `Outcome`.
    """

    message_ids: Sequence[str]
    nodes: Sequence[int]
    received_s: Sequence[float]
    rows: Sequence[Row]
    metrics: Sequence[Mapping[str, Any]]
    failed_at_last: Mapping[tuple[int, str], int]


class Cohorts(Protocol):
    """Cohorts of whose answers the cost, or all, is known before, so that they need no messages."""

    def train(
        self,
        content: RecordDict,
        nodes: Sequence[int],
        ttl_s: float,
        *,
        until: float,
        accepts: Callable[[CohortReplies], bool],
        bears: Callable[[NDArray[np.int64], NDArray[np.bool_]], bool],
    ) -> bool:
        """Has clients train, until all have answered; returns whether anything was done.

        Args:
            content: as for `run`, and so are the others but `accepts`.
            nodes: see there.
            ttl_s: see there.
            until: see there.
            accepts: is given what has come before it counts, and says whether it can be used; if
                not, clients are sent messages instead, in this round and in those that follow.
            bears: see there.
        """

    def run(
        self,
        content: RecordDict,
        nodes: Sequence[int],
        ttl_s: float,
        *,
        until: float,
        accepts: Callable[[Sequence[Mapping[str, Any]]], bool],
        bears: Callable[[NDArray[np.int64], NDArray[np.bool_]], bool],
    ) -> Outcome | None:
        """Sends clients a `train` message, and returns what has come when all have answered.

        Args:
            content: of the message.
            nodes: Flower ids of the clients, which are there and have nothing to do.
            ttl_s: time to live of the message.
            until: when it must be over, s.
            accepts: says whether answers that report these metrics can be used.
            bears: says whether it is no reason to end the run how many failures follow each other:
                of those in each instant, in order, how many messages are open before it, and who
                has failed, shape (n,).

        Returns:
            What has come; None if nothing was done, as events have to tell.
        """

    def used(self, outcome: Outcome, places: NDArray[np.int64]) -> None:
        """Reports that replies of the last cohort entered the server's model.

        Args:
            outcome: of the cohort.
            places: of the replies in it, in the order in which they count, shape (k,).
        """

    def left(self, places: NDArray[np.int64]) -> None:
        """Reports that replies of the last cohort were not used; `places` as for `used`."""


# ---- snapshots -----------------------------------------------------------------------------------


class Snapshots(Protocol):
    """Keeps what there is of a run between two rounds, from which it goes on if it is killed.

    A part of it names in `lasting`, an attribute of its class, those of its attributes that last
    from one round to the next. They are plain values: numbers, text, arrays, lists, dictionaries,
    named tuples and data classes of these, records of Flower, and other parts.
    """

    def begin(self, parts: Mapping[str, object]) -> None:
        """Notes that a strategy is about to begin, or fills its parts as they were between rounds.

        Args:
            parts: of the strategy, by names of its own; none if it cannot say what lasts.
        """

    def rest(self) -> None:
        """Notes that the strategy is between two rounds, and waits for nothing."""


# ---- peers ---------------------------------------------------------------------------------------


class Collected(NamedTuple):
    """What has come of a collective.

    Attributes:
        finish_s: when it is finished, s.
        nodes: the clients whose payloads are in it, in the order in which they took their places;
            none if it was given up.
        gone: the clients that went offline before its end.
    """

    finish_s: float
    nodes: Sequence[int]
    gone: Sequence[int]


class Peers(Protocol):
    """Transfers among clients, and tasks whose messages come by them. Clients are Flower ids."""

    def nodes(self) -> list[int]:
        """Returns all clients there are, in ascending order, whether available or not.

        A deployment returns those that are connected.
        """

    def reachable(self, node: int) -> bool:
        """Returns whether others can open connections to a client."""

    def site(self, node: int) -> int:
        """Returns the number of the site where a client is; the same for all where there are none.

        A deployment has none.
        """

    def transfer(
        self,
        source: int,
        target: int,
        size: int,
        since: float,
        *,
        fanout: int = 1,
        fanin: int = 1,
        index: int = 0,
        in_turn: bool = False,
    ) -> tuple[float, bool]:
        """Sends a payload from one client to another.

            arrival = since + latency + 8 size / min(up / fanout, down / fanin, path)

        Args:
            source: the client that sends.
            target: the client that receives.
            size: bytes of the payload.
            since: when it is sent, s, at most now.
            fanout: payloads that the source sends at the same time, which share its uplink.
            fanin: payloads that the target receives at the same time, which share its downlink.
            index: running number of the pair's transfers; decides whether it is lost.
            in_turn: for transfers that are many at any time. It has passed the source's uplink
                after what the source sent in turn before, and the target's downlink after what
                that received in turn.

        Returns:
            When it arrives, in s, and whether it does. For a lost one it is the time at which it is
            missed. A deployment returns `since` and True: what is relayed is not lost.
        """

    def collect(
        self,
        nodes: Sequence[int],
        sizes: Sequence[int],
        by: Collective,
        failure: Failure | None = None,
        since: float | None = None,
        avoided: frozenset[tuple[int, int]] = frozenset(),
    ) -> Collected:
        """Has clients take part in a collective.

        A client takes part in one at a time, in the order of the calls.

        Args:
            nodes: the clients.
            sizes: bytes of each one's payload.
            by: who sends what to whom.
            failure: what happens if a client goes offline before the end; None leaves it without
                effect, as if it had done its part before.
            since: when it begins, s, at most now: it has been on its way while clients computed;
                None is now.
            avoided: pairs of clients, between which a ring does not pass if it can.

        Returns:
            When it is finished, and whose payloads are in it. A deployment returns the present and
            all of them.
        """

    def ring_delays(self, nodes: Sequence[int]) -> dict[tuple[int, int], float]:
        """Returns the seconds that a byte takes on the edges between clients around a ring.

        Those of transfers of many bytes; a deployment returns none, as nobody measures them.

        Args:
            nodes: each sends to the next one, and the last to the first.
        """

    def push(self, messages: Sequence[Message], ready_s: Sequence[float]) -> list[str]:
        """Pushes messages whose content has come, or will come, from peers; returns their ids.

        Their payload and that of their replies cost neither bytes nor time: a client begins at
        `ready_s`, and its reply is there when it has computed. On a deployment these are
        ordinary messages.

        Args:
            messages: to clients.
            ready_s: for each message, the time in s at which the client has what it needs.
        """


class Relayed:
    """A deployment: everything goes through the server.

    Args:
        grid: Flower's.
    """

    def __init__(self, grid: Grid) -> None:
        self._grid = grid

    def nodes(self) -> list[int]:
        """Returns the connected clients."""
        return sorted(self._grid.get_node_ids())

    def reachable(self, node: int) -> bool:
        """Returns True: the server can."""
        return True

    def site(self, node: int) -> int:
        """Returns 0."""
        return 0

    def transfer(
        self,
        source: int,
        target: int,
        size: int,
        since: float,
        *,
        fanout: int = 1,
        fanin: int = 1,
        index: int = 0,
        in_turn: bool = False,
    ) -> tuple[float, bool]:
        """Returns (since, True)."""
        return since, True

    def collect(
        self,
        nodes: Sequence[int],
        sizes: Sequence[int],
        by: Collective,
        failure: Failure | None = None,
        since: float | None = None,
        avoided: frozenset[tuple[int, int]] = frozenset(),
    ) -> Collected:
        """Returns the present, and all clients."""
        return Collected(GridView(self._grid).clock.now(), list(nodes), [])

    def ring_delays(self, nodes: Sequence[int]) -> dict[tuple[int, int], float]:
        """Returns {}."""
        return {}

    def push(self, messages: Sequence[Message], ready_s: Sequence[float]) -> list[str]:
        """Pushes the messages."""
        return list(self._grid.push_messages(messages))


# ---- sums on the way -----------------------------------------------------------------------------


class Summed(NamedTuple):
    """What has come of a round's sum.

    Attributes:
        tree: which messages' replies are added in which order, and which sums of them.
        lost: messages whose replies are in no sum, as an aggregator died.
    """

    tree: SumTree
    lost: Sequence[str]


class Summation(Protocol):
    """Machines between clients and the server that add up what clients send in a round.

    Attributes:
        may_lose: whether a sum may lack replies that were added to it.
    """

    may_lose: bool

    def begin(self, numbers: int) -> None:
        """Begins a round whose sums have so many numbers."""

    def add(self, message_id: str) -> None:
        """Takes the reply to a message into the round, now."""

    def close(self, *, whole: bool = True) -> Summed:
        """Ends the round, and waits until its sum is at the server.

        Args:
            whole: whether there is one sum; otherwise the machines keep theirs.
        """
