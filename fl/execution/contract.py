"""The contract of client work: what a client is asked, what it returns, what its app offers.

A request's result depends only on the request, which has the client's own state in it: it can be
computed any time between dispatch and the moment the reply is needed, in any process, and again
after a process has died.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
from flwr.app import ConfigRecord, Context, Message, Metadata, RecordDict
from flwr.common.constant import SUPERLINK_NODE_ID
from numpy.typing import NDArray

from fl.execution.speech import Line
from fl.execution.virtual_time import EPOCH
from fl.flower.identity import RUN_ID, message_id, node_id
from fl.flower.payload import num_objects, num_scalars, payload_bytes, snapshot
from fl.flower.private import message_of

WORK_KEY = "fl.work"
"""Record of a message that says what the simulated device has time for: {"steps": int}."""


@dataclass(frozen=True)
class RunInfo:
    """What every client knows about the run.

    Attributes:
        seed: root seed.
        num_partitions: number of data partitions; client i holds partition i modulo this.
        run_config: what Flower's `Context.run_config` shows, `SEED_KEY` included.
        epoch: the date at virtual time 0, s since 1970.
        host_time: clients' clocks go on with the host's time, as measured durations do.
    """

    seed: int
    num_partitions: int
    run_config: dict[str, Any]
    epoch: int = EPOCH
    host_time: bool = False


class Payload:
    """Content shared by the messages of one broadcast; never changed after it was sent.

    Args:
        content: of the messages.
        size: its bytes; None counts them.
    """

    __slots__ = ("__weakref__", "_read", "_shape", "content", "size")

    def __init__(self, content: RecordDict, size: int | None = None) -> None:
        self.content = content
        self.size = payload_bytes(content) if size is None else size
        self._read: dict[object, Any] = {}
        self._shape: tuple[int, int] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles without what was read."""
        return Payload, (self.content, self.size)

    def shape(self, chunk_bytes: int) -> tuple[int, int]:
        """Returns the numbers in all arrays, and of how many objects the message is.

        Args:
            chunk_bytes: the most of an array in one object; the same for all calls.
        """
        if self._shape is None:
            self._shape = num_scalars(self.content), num_objects(self.content, chunk_bytes)
        return self._shape

    def read_by(self, app: PlannedApp) -> Any:
        """Returns what an app makes of the content, which it reads once."""
        if app not in self._read:
            self._read[app] = app.read(self.content)
        return self._read[app]


@dataclass(eq=False)
class Request:
    """What a client is asked.

    Attributes:
        client: index in the fleet.
        dispatch: running number of what this client was sent.
        payload: what the server sent.
        message_type, group_id, ttl: Flower's metadata of the message.
        created_at: likewise, s since 1970 in virtual time; the client's clock begins there.
        work: what the virtual device has time for (`WORK_KEY`), if the app plans its work.
        state: records of the client's `Context.state`; None if empty.
    """

    client: int
    dispatch: int
    payload: Payload
    message_type: str
    group_id: str
    ttl: float
    created_at: float = EPOCH
    work: dict[str, int] | None = None
    state: RecordDict | None = None

    @property
    def message_id(self) -> str:
        """The message's id."""
        return message_id(self.client, self.dispatch)

    def message(self, *, own_content: bool) -> Message:
        """Returns the message as the client receives it.

        Args:
            own_content: give the client dictionaries of its own, because its code may change them.
        """
        content = self.payload.content
        if own_content or self.work is not None:
            content = RecordDict(
                {key: record.copy() if own_content else record for key, record in content.items()}
            )
            if self.work is not None:
                content[WORK_KEY] = ConfigRecord(dict(self.work))
        metadata = Metadata(
            run_id=RUN_ID,
            message_id=self.message_id,
            src_node_id=SUPERLINK_NODE_ID,
            dst_node_id=node_id(self.client),
            reply_to_message_id="",
            group_id=self.group_id,
            created_at=self.created_at,
            ttl=self.ttl,
            message_type=self.message_type,
        )
        return message_of(metadata, content=content)

    def context(self, run: RunInfo, *, own_content: bool = False) -> Context:
        """Returns the client's Flower context.

        Its state can be changed without changing the request's: a request may be answered again
        after a process died, or be answered and lost to a fault that keeps the client where it was.

        Args:
            run: what every client knows.
            own_content: give the client records of its own, because its code may change them.
        """
        state = RecordDict()
        if self.state is not None:
            state = snapshot(self.state) if own_content else self.state.copy()
        return Context(
            run_id=RUN_ID,
            node_id=node_id(self.client),
            node_config={
                "partition-id": self.client % run.num_partitions,
                "num-partitions": run.num_partitions,
            },
            state=state,
            run_config=dict(run.run_config),
        )


@dataclass(eq=False)
class CohortRequest(Request):
    """What several clients are asked at one instant, who keep nothing and answer together.

    There is one answer, with a row for each: see `ForeseenApp.train_cohort`. The first of the
    clients gives it its name.

    Attributes:
        clients: indices in the fleet, int64, shape (n,).
        dispatches: running number of what each was sent, int64, shape (n,).
    """

    clients: NDArray[np.int64] = field(kw_only=True)
    dispatches: NDArray[np.int64] = field(kw_only=True)

    def part(self, places: slice) -> CohortRequest:
        """Returns what some of the clients are asked."""
        clients, dispatches = self.clients[places], self.dispatches[places]
        return replace(
            self,
            client=int(clients[0]),
            dispatch=int(dispatches[0]),
            clients=clients,
            dispatches=dispatches,
        )


@dataclass(eq=False)
class Result:
    """What came of a request.

    Attributes:
        content: the reply's content; None if there is an error.
        error: Flower's error code and reason.
        state: the client's state afterwards; None if empty.
        slept_s: seconds the app asked `time.sleep` for.
        host_s: host seconds the app took; only ever used if the user asks for measured durations.
        details: traceback of an exception, for the log.
        said: what the app printed and logged, where nobody in its process has heard it.
    """

    content: RecordDict | None = None
    error: tuple[int, str] | None = None
    state: RecordDict | None = None
    slept_s: float = 0.0
    host_s: float = 0.0
    details: str = ""
    said: Sequence[Line] = ()


@dataclass(frozen=True)
class Workload:
    """What a request costs a device, known before it is answered.

    Attributes:
        flops: FLOPs of the planned work.
        steps: how many local steps fit the message's "deadline-s" or "elapsed-s"; None without.
        memory_bytes: memory the work needs.
        past_flops: FLOPs of the work done before the message came: they cost energy, but no more
            time.
        flops_of: the FLOPs of so many steps, where only the work itself tells how many there are,
            in the reply's metric "steps"; `flops` is then the most. None if they are known.
        local_steps: of the planned work; with `flops_of` the most.
        reply_bytes: of the reply's content, as `payload_bytes` counts them, if that is known before
            the work is done and the client keeps nothing of it. Then nobody has to wait for the
            work until the server reads the reply.
    """

    flops: float
    steps: int | None = None
    memory_bytes: int = 0
    past_flops: float = 0.0
    reply_bytes: int | None = None
    flops_of: Callable[[int], float] | None = None
    local_steps: int = 0

    @property
    def work(self) -> dict[str, int] | None:
        """What the client is told of it, in the record `WORK_KEY`."""
        return None if self.steps is None else {"steps": self.steps}


@runtime_checkable
class PlannedApp(Protocol):
    """A ClientApp whose work can be planned, and done for many clients together.

    What it does not train so (`evaluate`, `query`, training under Flower mods) it answers as any
    other ClientApp does.
    """

    @property
    def has_mods(self) -> bool:
        """Whether Flower mods, which are anybody's code, see its messages."""

    def read(self, content: RecordDict) -> Any:
        """Returns what a message's content says; never changed afterwards."""

    def memory_bytes(self) -> int:
        """Returns the memory that training takes on a device, in bytes, for the largest batch."""

    def plan(
        self, payload: Payload, message_type: str, partition: int, seconds_per_flop: float
    ) -> Workload:
        """Returns what a message's work costs.

        Args:
            payload: of the message.
            message_type: of the message; what follows a dot is ignored.
            partition: the client's partition-id.
            seconds_per_flop: of the client's device, for this work.

        Raises:
            ConfigError: the message's configuration makes no sense.
        """

    def batch_key(self, request: Request, run: RunInfo) -> Hashable | None:
        """Returns what requests share that train together; None for one that is answered alone."""

    def trains(self, request: Request) -> bool:
        """Returns whether `train_many` takes the request."""

    def train_many(self, requests: Sequence[Request], run: RunInfo) -> list[Result]:
        """Returns the results of one request, or of several that share a batch key.

        Raises:
            ConfigError, PayloadError: a request makes no sense. Of several each is then answered by
                itself, and only that one gets the error.
        """


@dataclass(frozen=True, eq=False)
class ForeseenCosts:
    """What answers to one message cost, which is known before clients train.

    Attributes:
        flops: of each client's work, shape (n,), float64.
        reply_bytes: of its reply's content, shape (n,), int64.
    """

    flops: NDArray[np.float64]
    reply_bytes: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class ForeseenAnswers:
    """What clients answer to one message, which is known before they are asked.

    Of many clients there are few different answers: each is kept once.

    Attributes:
        which: of each client, shape (n,), int64.
        flops: of each answer's work, shape (k,), float64.
        reply_bytes: of its content, shape (k,), int64.
        metrics: that it reports, k of them.
    """

    which: NDArray[np.int64]
    flops: NDArray[np.float64]
    reply_bytes: NDArray[np.int64]
    metrics: Sequence[Mapping[str, Any]]


@runtime_checkable
class ForeseenApp(Protocol):
    """A ClientApp of whose answers the cost, or all, may be known beforehand."""

    def costs(self, payload: Payload, partitions: NDArray[np.int64]) -> ForeseenCosts | None:
        """Returns what answers to a `train` message cost the clients that hold these partitions.

        None if only the work tells, or if clients keep something of it.
        """

    def train_cohort(self, cohort: CohortRequest, run: RunInfo) -> Result:
        """Returns what clients answer that have trained together, whose costs are known.

        They are the numbers that `PlannedApp.train_many` gives for the same clients. The content is
        one of `fl.flower.cohort_content`.

        Raises:
            ConfigError: the request makes no sense.
        """

    def foresees(self, payload: Payload) -> str:
        """Returns why the answers to a `train` message are not known; "" if they are.

        Then each is the model as it was sent, with nothing beside it and nothing kept.
        """

    def answers(
        self, payload: Payload, partitions: NDArray[np.int64], run: RunInfo
    ) -> ForeseenAnswers:
        """Returns what the clients that hold these partitions answer."""
