"""An executor that answers from a journal first, and trains only what the journal lacks."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from flwr.app import RecordDict

from fl.errors import ConfigError
from fl.execution.contract import CohortRequest, Payload, Request, Result, RunInfo
from fl.execution.executor import AppSource, Executor
from fl.runs.journal.encoding import checksum, encode
from fl.runs.journal.journal import Journal


def _facts(request: list[Any], result: Result) -> list[Any]:
    """Returns what a record says of one answer, beside its content and state."""
    return [request, result.error, result.slept_s, result.host_s, result.details]


def _result(
    facts: list[Any], number: int, records: dict[str, RecordDict | None]
) -> tuple[list[Any], Result]:
    """Returns what was asked, and a result, as `Journaled.result` has noted both.

    Raises:
        ConfigError: somebody else has noted something else.
    """
    try:
        request, error, slept_s, host_s, details = facts
        return list(request), Result(
            content=records[f"content {number}"],
            error=None if error is None else (int(error[0]), str(error[1])),
            state=records[f"state {number}"],
            slept_s=float(slept_s),
            host_s=float(host_s),
            details=str(details),
        )
    except (KeyError, IndexError, TypeError, ValueError) as wrong:
        raise ConfigError(f"the journal holds an answer that is no client's: {wrong!r}") from wrong


@dataclass(eq=False)
class _Wave:
    """A wave that the executor has not been given yet.

    Attributes:
        members: the requests, as they were submitted: an answered one loses its payload.
        open: those whose result may still be asked for.
    """

    members: list[Request]
    open: set[Request] = field(default_factory=set)


class Journaled(Executor):
    """Keeps the results of another executor in a journal, and returns those that are there.

    What trains together decides the last bits of its results. So a wave of which the journal holds
    a part is given to the executor whole, as it was the first time; waves that the journal answers
    are never given to it.

    What the executor has ready when it is asked goes into one record: the results of a batch, which
    cost a system call and a description of their own each if they were noted one by one. None of
    them is used before all are noted.

    Args:
        executor: runs what the journal does not hold.
        journal: of the run.
        keeps_errors: whether an exception of a client is an answer. It is none where it ends the
            run, which then asks again when it goes on.
    """

    def __init__(self, executor: Executor, journal: Journal, *, keeps_errors: bool = True) -> None:
        self._executor = executor
        self._journal = journal
        self.max_batch = executor.max_batch
        self._keeps_errors = keeps_errors
        self._waves: dict[Request, _Wave] = {}  # of open members; in order of submission
        self._payloads: weakref.WeakKeyDictionary[Payload, int] = weakref.WeakKeyDictionary()
        self._came: dict[Request, Result] = {}  # of the executor's, nobody has asked for them yet
        # Of the journal's, likewise, by client and dispatch: what was asked, and the result.
        self._recalled: dict[tuple[int, int], tuple[list[Any], Result]] = {}

    @property
    def at_rest(self) -> bool:
        """Whether nothing is open, and no result is known that nobody has asked for."""
        return not (self._waves or self._came or self._recalled)

    def start(self, app: AppSource, run: RunInfo) -> None:
        """Starts the executor."""
        self._executor.start(app, run)

    def submit(self, wave: Sequence[Request]) -> None:
        """Passes a wave on, or keeps it for when the journal ends."""
        if not self._journal.replaying:
            self._executor.submit(wave)
            return
        held = _Wave([replace(member) for member in wave], set(wave))
        self._waves.update(dict.fromkeys(wave, held))

    def result(self, request: Request) -> Result:
        """Returns the result in the journal, or else the executor's, which the journal gets."""
        came = self._came.pop(request, None)
        if came is not None:
            return came
        known = self._recalled.pop((request.client, request.dispatch), None)
        if known is None and self._journal.replaying:
            known = self._recall(request)
        if known is not None:
            self._close(request)
            self._journal.check(["result", *known[0]], ["result", *self._key(request)])
            return known[1]
        self._hand_over()
        result = self._executor.result(request)
        others = {other: self._executor.result(other) for other in self._executor.ready()}
        self._note({request: result, **others})
        self._came.update(others)
        return result

    def _recall(self, request: Request) -> tuple[list[Any], Result] | None:
        """Takes the journal's next answers, and returns the first; None at its end."""
        answer = self._journal.recall("result", self._key(request))
        if answer is None:
            return None
        facts, records = answer
        if not isinstance(answers := facts.get("answers"), list) or not answers:
            raise ConfigError("the journal holds an answer that is no client's: it holds none")
        first, *others = (_result(told, i, records) for i, told in enumerate(answers))
        for other in others:
            try:
                client, dispatch, *_ = other[0]
                self._recalled[int(client), int(dispatch)] = other
            except (TypeError, ValueError) as wrong:
                raise ConfigError(f"the journal holds an answer to nobody: {wrong!r}") from wrong
        self._journal.answers += len(others)
        return first

    def _note(self, results: Mapping[Request, Result]) -> None:
        """Writes results into the journal, as one record."""
        answers: list[list[Any]] = []
        records: dict[str, RecordDict | None] = {}
        for request, result in results.items():
            if result.error is None or self._keeps_errors:
                number = len(answers)
                answers.append(_facts(self._key(request), result))
                records[f"content {number}"] = result.content
                records[f"state {number}"] = result.state
        if answers:
            self._journal.note("result", answers[0][0], {"answers": answers}, records)
            self._journal.answers += len(answers) - 1

    def discard(self, request: Request) -> None:
        """Forgets a submitted request whose result nobody will need."""
        if self._came.pop(request, None) is not None:
            return
        known = self._recalled.pop((request.client, request.dispatch), None)
        if known is None and request not in self._waves:
            self._executor.discard(request)
        self._close(request)

    def aside(self, requests: Sequence[Request]) -> list[Result]:
        """Returns the executor's results, which the journal does not get."""
        return self._executor.aside(requests)

    def close(self) -> None:
        """Closes the executor."""
        self._waves.clear()
        self._came.clear()
        self._recalled.clear()
        self._executor.close()

    def report(self) -> dict[str, Any]:
        """Returns the executor's facts."""
        return self._executor.report()

    def _key(self, request: Request) -> list[Any]:
        """Returns what tells a request from all others: who does what, and with what."""
        payload = request.payload
        if payload not in self._payloads:
            try:
                self._payloads[payload] = checksum(encode({}, {"content": payload.content}))
            except (TypeError, ValueError):  # somebody's own kind of array: not compared
                self._payloads[payload] = 0
        others = []
        if isinstance(request, CohortRequest):
            others = [checksum([request.clients.tobytes(), request.dispatches.tobytes()])]
        return [
            request.client,
            request.dispatch,
            request.message_type,
            request.work,
            self._payloads[payload],
            *others,
        ]

    def _close(self, request: Request) -> None:
        """Takes a request from its wave, if the journal has been asked for it."""
        wave = self._waves.pop(request, None)
        if wave is not None:
            wave.open.discard(request)

    def _hand_over(self) -> None:
        """Gives the executor what the journal has left open."""
        waves, self._waves = dict.fromkeys(self._waves.values()), {}
        for wave in waves:
            # Members are told apart by identity, and the open ones are asked for by their own.
            own = {(member.client, member.dispatch): member for member in wave.open}
            own = {name: member for name, member in own.items() if name not in self._recalled}
            if not own:
                continue
            members = [own.get((m.client, m.dispatch), m) for m in wave.members]
            self._executor.submit(members)
            for member in members:
                if member not in own.values():
                    self._executor.discard(member)
