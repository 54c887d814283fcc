"""An executor that answers from a journal first, and trains only what the journal lacks."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from flwr.app import RecordDict

from fl.errors import ConfigError
from fl.execution.contract import Payload, Request, Result, RunInfo
from fl.execution.executor import AppSource, Executor
from fl.runs.journal.encoding import checksum, encode
from fl.runs.journal.journal import Journal


def _result(facts: dict[str, Any], records: dict[str, RecordDict | None]) -> Result:
    """Returns a result as `Journaled.result` has noted it.

    Raises:
        ConfigError: somebody else has noted something else.
    """
    try:
        error = facts["error"]
        return Result(
            content=records["content"],
            error=None if error is None else (int(error[0]), str(error[1])),
            state=records["state"],
            slept_s=float(facts["slept_s"]),
            host_s=float(facts["host_s"]),
            details=str(facts["details"]),
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

    Args:
        executor: runs what the journal does not hold.
        journal: of the run.
        keeps_errors: whether an exception of a client is an answer. It is none where it ends the
            run, which then asks again when it goes on.
    """

    def __init__(self, executor: Executor, journal: Journal, *, keeps_errors: bool = True) -> None:
        self._executor = executor
        self._journal = journal
        self._keeps_errors = keeps_errors
        self._waves: dict[Request, _Wave] = {}  # of open members; in order of submission
        self._payloads: weakref.WeakKeyDictionary[Payload, int] = weakref.WeakKeyDictionary()

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
        key = self._key(request)
        answer = self._journal.recall("result", key)
        if answer is not None:
            self._close(request)
            return _result(*answer)
        self._hand_over()
        result = self._executor.result(request)
        if result.error is not None and not self._keeps_errors:
            return result
        self._journal.note(
            "result",
            key,
            {
                "error": result.error,
                "slept_s": result.slept_s,
                "host_s": result.host_s,
                "details": result.details,
            },
            {"content": result.content, "state": result.state},
        )
        return result

    def discard(self, request: Request) -> None:
        """Forgets a submitted request whose result nobody will need."""
        if request in self._waves:
            self._close(request)
        else:
            self._executor.discard(request)

    def aside(self, requests: Sequence[Request]) -> list[Result]:
        """Returns the executor's results, which the journal does not get."""
        return self._executor.aside(requests)

    def close(self) -> None:
        """Closes the executor."""
        self._waves.clear()
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
        return [
            request.client,
            request.dispatch,
            request.message_type,
            request.work,
            self._payloads[payload],
        ]

    def _close(self, request: Request) -> None:
        self._waves.pop(request).open.discard(request)

    def _hand_over(self) -> None:
        """Gives the executor what the journal has left open."""
        waves, self._waves = dict.fromkeys(self._waves.values()), {}
        for wave in waves:
            # Members are told apart by identity, and the open ones are asked for by their own.
            own = {(member.client, member.dispatch): member for member in wave.open}
            members = [own.get((m.client, m.dispatch), m) for m in wave.members]
            self._executor.submit(members)
            for member in members:
                if member not in wave.open:
                    self._executor.discard(member)
