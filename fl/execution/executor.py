"""What it takes to run clients' work somewhere, and what comes back.

A task's result depends only on the message and the client's own state, so an executor may run it
any time between dispatch and the moment its reply is needed. The grid submits waves of tasks that
are waiting; the executor forms batches from a wave by a rule that knows nothing of actors, so the
number of actors cannot change a result.
"""

from __future__ import annotations

import logging
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

from flwr.app import (
    ArrayRecord,
    ConfigRecord,
    Context,
    Error,
    Message,
    Metadata,
    MetricRecord,
    RecordDict,
)
from flwr.clientapp import ClientApp
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode

from fl.clients.app import MEMORY_KEY, WORK_KEY, TrainingApp, read_memory
from fl.clients.batched import even_runs
from fl.clients.planned import PlannedApp
from fl.compression import PayloadError
from fl.errors import ConfigError
from fl.execution.speech import Line, hearing_clients
from fl.execution.virtual_time import EPOCH, TaskClock, answering
from fl.flower.content import content_of
from fl.flower.identity import RUN_ID, assume_identity, message_id, node_id
from fl.flower.payload import snapshot
from fl.flower.private import message_of
from fl.randomness import SEED_KEY, global_generators

log = logging.getLogger("fl")


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


@dataclass(eq=False)
class Payload:
    """Content shared by the messages of one broadcast; never changed after it was sent."""

    content: RecordDict
    size: int


@dataclass(eq=False)
class Assignment:
    """One task as an executor sees it.

    Attributes:
        client: index in the fleet.
        dispatch: the client's running task number.
        payload: what the server sent.
        message_type, group_id, ttl: Flower's metadata of the message.
        created_at: likewise, s since 1970 in virtual time; the client's clock begins there.
        work: what the virtual device has time for (`fl.work`), if the app plans its work.
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
            message_id=message_id(self.client, self.dispatch),
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
        """Returns the client's Flower context for this task.

        Its state can be changed without changing the assignment's: a task may run again after its
        actor died, or run and be lost to a fault that keeps the client where it was.

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
class Outcome:
    """What running an assignment gave.

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


class Executor(ABC):
    """Runs assignments and keeps their outcomes until they are asked for."""

    @abstractmethod
    def start(self, app: AppSource, run: RunInfo) -> None:
        """Gets ready to run `app`'s clients."""

    @abstractmethod
    def submit(self, wave: Sequence[Assignment]) -> None:
        """Accepts assignments that may run now, in any order; no two of one client."""

    @abstractmethod
    def result(self, assignment: Assignment) -> Outcome:
        """Returns the outcome of a submitted assignment, once; blocks until it is there."""

    @abstractmethod
    def discard(self, assignment: Assignment) -> None:
        """Forgets a submitted assignment whose outcome nobody will need."""

    @abstractmethod
    def close(self) -> None:
        """Releases what `start` took; also if it failed, or was never called."""

    def shared_by(self, runs: int) -> Self:
        """Returns the executor as one of so many runs that work here at the same time."""
        return self

    def report(self) -> dict[str, Any]:
        """Returns facts for the run's summary."""
        return {}


AppSource = ClientApp | Callable[[], ClientApp]
"""A ClientApp, or a function that makes one (called once in every worker process)."""


def load_app(source: AppSource, epoch: int = EPOCH) -> ClientApp:
    """Returns the ClientApp of a source.

    Args:
        source: of the app.
        epoch: the date that whoever looks at a clock meanwhile sees, s since 1970.

    Raises:
        ConfigError: the source gives something that is not a ClientApp.
    """
    with answering(TaskClock(), epoch):
        app = source if isinstance(source, ClientApp) else source()
    if not isinstance(app, ClientApp):
        raise ConfigError(
            f"client_app makes {type(app).__name__}: a function in its place must return a "
            "flwr.clientapp.ClientApp"
        )
    return app


@dataclass(eq=False)
class Worker:
    """Runs assignments in this process. The serial executor has one, every Ray actor has one."""

    app: ClientApp
    run: RunInfo

    def execute(self, batch: Sequence[Assignment]) -> list[Outcome]:
        """Runs a batch: together if it has several assignments, which then share a batch key."""
        if len(batch) > 1 and isinstance(self.app, PlannedApp):
            with hearing_clients(names_of(batch)) as ear:
                outcomes = self._together(self.app, batch)
            outcomes[0].said = ear.lines
            return outcomes
        outcomes = []
        for assignment in batch:
            with hearing_clients(names_of([assignment])) as ear:
                outcome = self._alone(assignment)
            outcome.said = ear.lines
            outcomes.append(outcome)
        return outcomes

    def _together(self, app: PlannedApp, batch: Sequence[Assignment]) -> list[Outcome]:
        began = time.perf_counter()
        if isinstance(app, TrainingApp) and app.uplink is None and app.downlink is None:
            outcomes = self._trained(app, batch)
        else:
            outcomes = self._packed(app, batch)
        for outcome in outcomes:
            outcome.host_s = (time.perf_counter() - began) / len(batch)
        return outcomes

    def _packed(self, app: PlannedApp, batch: Sequence[Assignment]) -> list[Outcome]:
        messages = [assignment.message(own_content=False) for assignment in batch]
        contexts = [assignment.context(self.run) for assignment in batch]
        try:
            contents = app.train_contents(messages, contexts)
        except (ConfigError, PayloadError):
            # One has nothing that can be packed, as an update that is not finite. Each by itself
            # gets its own outcome.
            return [self._alone(assignment) for assignment in batch]
        return [
            Outcome(content=content, state=context.state or None)
            for content, context in zip(contents, contexts, strict=True)
        ]

    def _trained(self, app: TrainingApp, batch: Sequence[Assignment]) -> list[Outcome]:
        """Does what `_packed` does where no compressor asks for messages and contexts."""
        payloads = dict.fromkeys(member.payload for member in batch)
        orders = {payload: app.order(payload.content) for payload in payloads}
        tasks = [
            app.task(
                orders[member.payload],
                message_id(member.client, member.dispatch),
                member.client % self.run.num_partitions,
                self.run.run_config.get(SEED_KEY),
                read_memory(member.state),
                member.work,
            )
            for member in batch
        ]
        return [
            Outcome(content=done.content, state=_with_memory(member.state, done.memory))
            for member, done in zip(batch, app.train_tasks(tasks), strict=True)
        ]

    def _alone(self, assignment: Assignment) -> Outcome:
        # Code that is not ours may change what it is given, and keep what it has sent.
        foreign = not isinstance(self.app, PlannedApp) or self.app.has_mods
        message = assignment.message(own_content=foreign)
        context = assignment.context(self.run, own_content=foreign)
        clock = TaskClock(host=self.run.host_time)
        name = message_id(assignment.client, assignment.dispatch)
        assume_identity(node_id(assignment.client))
        began = time.perf_counter()
        try:
            with (
                global_generators(self.run.seed, "client", name),
                answering(clock, assignment.created_at),
            ):
                reply = self.app(message, context)
            outcome = _outcome(reply, message, foreign)
            outcome.state = _state(context, foreign)
        except KeyboardInterrupt:
            raise  # the user's, not the client's
        except BaseException as exception:  # whatever a client's code raises is its error reply
            outcome = Outcome(
                error=(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, _reason(exception)),
                state=assignment.state,
                details="" if isinstance(exception, _BadReply) else _traceback(exception),
            )
        finally:
            assume_identity()
        outcome.host_s = time.perf_counter() - began
        outcome.slept_s = clock.slept_s
        return outcome


def _with_memory(state: RecordDict | None, memory: ArrayRecord | None) -> RecordDict | None:
    if memory is None:
        return state
    return content_of({**(state or {}), MEMORY_KEY: memory})


class _BadReply(Exception):
    """A ClientApp returned something that no Flower runtime could send."""


def _traceback(exception: BaseException) -> str:
    """Returns an exception's traceback from where the client's code begins."""
    began = exception.__traceback__
    while began is not None and began.tb_frame.f_code.co_filename == __file__:
        began = began.tb_next
    try:
        return "".join(traceback.format_exception(type(exception), exception, began))
    except Exception:  # its __str__ and its __cause__ are the client's code, too
        return ""


def _reason(exception: BaseException) -> str:
    if isinstance(exception, _BadReply):
        return str(exception)
    try:
        return f"{type(exception)}:<'{exception}'>"  # as Flower's runtimes word it
    except Exception:  # its __str__ is the client's code, too
        return f"{type(exception)}"


def _outcome(reply: object, message: Message, foreign: bool) -> Outcome:
    if not isinstance(reply, Message):
        raise _BadReply(f"the ClientApp returned {type(reply).__name__} instead of a Message")
    asked, answer = message.metadata, reply.metadata
    if (answer.dst_node_id, answer.reply_to_message_id) != (asked.src_node_id, asked.message_id):
        raise _BadReply(
            f"the ClientApp's reply is for node {answer.dst_node_id} and answers message "
            f"{answer.reply_to_message_id!r}; it must be for node {asked.src_node_id} and answer "
            f"{asked.message_id!r}: make it with Message(content, reply_to=message)"
        )
    if reply.has_error():
        error: Error = reply.error
        return Outcome(error=(error.code, error.reason or ""))
    content = reply.content
    return Outcome(content=_plain(content, "the reply's content") if foreign else content)


def _state(context: Context, foreign: bool) -> RecordDict | None:
    state = _plain(context.state, "Context.state") if foreign else context.state
    return state or None


def _plain(content: object, what: str) -> RecordDict:
    """Returns a copy with nothing in it but Flower's own types, which can be sent anywhere."""
    if not isinstance(content, RecordDict):
        raise _BadReply(f"{what} is {type(content).__name__}, not a RecordDict")
    records = {}
    for key, record in content.items():
        kind = next((kind for kind in _RECORDS if isinstance(record, kind)), None)
        if kind is None:
            raise _BadReply(f"{what} holds {type(record).__name__} under {key!r}, not a record")
        try:
            records[key] = kind(dict(record.items()))
        except (TypeError, ValueError) as error:
            raise _BadReply(f"{what} holds what a record cannot, under {key!r}: {error}") from error
    return RecordDict(records)


_RECORDS: tuple[type[Any], ...] = (ArrayRecord, MetricRecord, ConfigRecord)


def check_counts(**counts: object) -> None:
    """Checks that an executor's arguments are whole numbers of at least 1.

    Raises:
        ConfigError: one is not; the message names it as a key of the configuration.
    """
    for name, value in counts.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ConfigError(f"{name} is {value!r}; it must be a whole number, at least 1")


def names_of(members: Sequence[Assignment]) -> str:
    """Returns a batch's clients in words, three at most."""
    first = [str(member.client) for member in members[:3]]
    more = ", ..." if len(members) > len(first) else ""
    return f"client{'s' if len(members) > 1 else ''} {', '.join(first)}{more}"


def form_batches(
    app: ClientApp, run: RunInfo, wave: Sequence[Assignment], max_batch: int
) -> list[list[Assignment]]:
    """Splits a wave into batches that train together.

    Assignments with the same batch key stay in the order of their dispatch and are cut into runs of
    equal length, at most `max_batch`; into an even number of them if there is more than one, so
    that two workers are done at the same time. What cannot be batched forms batches of one. Only
    the wave and `max_batch` decide, never the number of workers.
    """
    if not isinstance(app, PlannedApp) or max_batch <= 1:
        return [[assignment] for assignment in wave]
    groups: dict[Any, list[Assignment]] = {}
    batches: list[list[Assignment]] = []
    known: dict[Any, Any] = {}
    for assignment in wave:
        # What decides is the same for all clients of a broadcast, but for what they remember.
        form: tuple[Any, ...] = (
            assignment.payload,
            assignment.message_type,
            assignment.work is None,
            _plain_memory(assignment.state),
        )
        if form not in known:
            known[form] = app.batch_key(
                assignment.message(own_content=False), assignment.context(run)
            )
        key = known[form]
        if key is None:
            batches.append([assignment])
        else:
            groups.setdefault(key, []).append(assignment)
    for group in groups.values():
        batches.extend(_runs(group, max_batch))
    return batches


def _plain_memory(state: RecordDict | None) -> bool:
    return state is None or isinstance(state.get(MEMORY_KEY, _NO_MEMORY), ArrayRecord)


_NO_MEMORY = ArrayRecord()


def _runs(group: list[Assignment], longest: int) -> list[list[Assignment]]:
    count = -(-len(group) // longest)
    return even_runs(group, count + count % 2 if count > 1 else 1)
