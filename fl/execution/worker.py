"""Answers requests in this process. The serial executor has one worker, every Ray actor has one."""

from __future__ import annotations

import time
import traceback
from collections.abc import Sequence
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode

from fl.compression import PayloadError
from fl.errors import ConfigError
from fl.execution.contract import (
    CohortRequest,
    ForeseenApp,
    PlannedApp,
    Request,
    Result,
    RunInfo,
)
from fl.execution.speech import hearing_clients
from fl.execution.virtual_time import TaskClock, answering
from fl.flower.identity import assume_identity, node_id
from fl.randomness import global_generators


class Worker:
    """Answers requests.

    Args:
        app: of the clients.
        run: what every client knows.
    """

    def __init__(self, app: ClientApp, run: RunInfo) -> None:
        self._app = app
        self._run = run
        self._planned = app if isinstance(app, PlannedApp) else None
        # Code that is not ours may change what it is given, and keep what it has sent.
        self._foreign = self._planned is None or self._planned.has_mods

    def execute(self, batch: Sequence[Request]) -> list[Result]:
        """Returns the results of requests, which share a batch key if their app has such keys."""
        if self._planned is not None and len(batch) > 1:
            with hearing_clients(names_of(batch)) as ear:
                results = self._together(self._planned, batch)
            results[0].said = ear.lines
            return results
        results = []
        for request in batch:
            with hearing_clients(names_of([request])) as ear:
                result = self._alone(request)
            result.said = ear.lines
            results.append(result)
        return results

    def _together(self, app: PlannedApp, batch: Sequence[Request]) -> list[Result]:
        began = time.perf_counter()
        try:
            results = app.train_many(batch, self._run)
        except (ConfigError, PayloadError):
            # One has nothing that can be packed, as an update that is not finite. Each by itself
            # gets its own result.
            return [self._alone(request) for request in batch]
        for result in results:
            result.host_s = (time.perf_counter() - began) / len(batch)
        return results

    def _alone(self, request: Request) -> Result:
        clock = TaskClock(host=self._run.host_time)
        assume_identity(node_id(request.client))
        began = time.perf_counter()
        try:
            with (
                global_generators(self._run.seed, "client", request.message_id),
                answering(clock, request.created_at),
            ):
                result = self._answer(request)
        except KeyboardInterrupt:
            raise  # the user's, not the client's
        except BaseException as exception:  # whatever a client's code raises is its error reply
            result = Result(
                error=(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, _reason(exception)),
                state=request.state,
                details="" if isinstance(exception, _BadReply) else _traceback(exception),
            )
        finally:
            assume_identity()
        result.host_s = time.perf_counter() - began
        result.slept_s = clock.slept_s
        return result

    def _answer(self, request: Request) -> Result:
        if isinstance(request, CohortRequest) and isinstance(self._app, ForeseenApp):
            return self._app.train_cohort(request, self._run)
        if self._planned is not None and self._planned.trains(request):
            (result,) = self._planned.train_many([request], self._run)
            return result
        message = request.message(own_content=self._foreign)
        context = request.context(self._run, own_content=self._foreign)
        result = _result(self._app(message, context), message, self._foreign)
        result.state = _state(context, self._foreign)
        return result


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


def _result(reply: object, message: Message, foreign: bool) -> Result:
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
        return Result(error=(error.code, error.reason or ""))
    content = reply.content
    return Result(content=_plain(content, "the reply's content") if foreign else content)


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


def names_of(members: Sequence[Request]) -> str:
    """Returns a batch's clients in words, three at most."""
    clients = [member.client for member in members]
    if isinstance(cohort := members[0], CohortRequest):
        clients = cohort.clients.tolist()
    first = [str(client) for client in clients[:3]]
    more = ", ..." if len(clients) > len(first) else ""
    return f"client{'s' if len(clients) > 1 else ''} {', '.join(first)}{more}"
