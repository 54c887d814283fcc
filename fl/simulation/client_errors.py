"""What goes wrong in clients' code: each kind of error is told once, and all are counted."""

from __future__ import annotations

import logging
import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

from fl.errors import SimulationError

log = logging.getLogger("fl")

_MOST_TOLD = 5  # kinds of errors, with their tracebacks
_MOST_KEPT = 100  # kinds of errors that are counted apart
_LONGEST = 500  # characters of a message
_FLOWERS = re.compile(r"<class '(?:[\w.]*\.)?(\w+)'>(?::<'(.*)'>)?", re.DOTALL)


@dataclass
class _Kind:
    count: int
    client: int
    dispatch: int
    time_s: float


class ClientErrors:
    """Errors of ClientApps, told apart by type and message.

    Args:
        fail_fast: raise at the first.
    """

    lasting = ("_kinds", "_others")

    def __init__(self, *, fail_fast: bool = False) -> None:
        self._fail_fast = fail_fast
        self._kinds: dict[str, _Kind] = {}
        self._others = 0

    def add(self, reason: str, details: str, client: int, dispatch: int, time_s: float) -> None:
        """Counts an error, and tells the user of one that was not there before.

        Args:
            reason: of Flower's error reply.
            details: traceback, if there is one.
            client: whose.
            dispatch: the client's running task number.
            time_s: virtual s.

        Raises:
            SimulationError: the run stops at the first; the traceback is a note to it.
        """
        what = _readable(reason)
        where = f"client {client}, dispatch {dispatch}, at {time_s:.6g} s"
        if self._fail_fast:
            error = SimulationError(f"ClientApp failed on {where}: {what}")
            if details:
                error.add_note(details.rstrip())
            raise error
        kind = self._kinds.get(what)
        if kind is not None:
            kind.count += 1
        elif len(self._kinds) < _MOST_KEPT:
            self._kinds[what] = _Kind(1, client, dispatch, time_s)
            self._tell(where, details.rstrip() or what)
        else:
            self._others += 1

    def _tell(self, where: str, details: str) -> None:
        if len(self._kinds) == 1:
            log.warning(
                "ClientApp failed on %s; the server gets an error reply. Each other error is shown "
                "once (fail_fast=true stops at the first)\n%s",
                where,
                details,
            )
        elif len(self._kinds) <= _MOST_TOLD:
            log.warning("ClientApp failed on %s, in another way\n%s", where, details)
        elif len(self._kinds) == _MOST_TOLD + 1:
            log.warning("ClientApps fail in more ways, which summary.json counts")

    def conclude(self) -> None:
        """Tells the user how often what happened, if more happened than was shown."""
        total = self._others + sum(kind.count for kind in self._kinds.values())
        if total > min(len(self._kinds), _MOST_TOLD):
            often = sorted(self._kinds.items(), key=lambda item: -item[1].count)
            counts = "; ".join(f"{kind.count} x {what}" for what, kind in often[:_MOST_TOLD])
            log.warning("ClientApps failed %d times: %s", total, counts)

    def counts(self) -> Counter[str]:
        """Returns how often each kind of error happened."""
        return Counter({what: kind.count for what, kind in self._kinds.items()})

    def report(self) -> dict[str, Any]:
        """Returns facts for the run's summary: each kind, its count, and where it was first."""
        if not self._kinds:
            return {}
        kinds = [
            {
                "error": what,
                "count": kind.count,
                "client": kind.client,
                "dispatch": kind.dispatch,
                "time_s": kind.time_s,
            }
            for what, kind in self._kinds.items()
        ]
        return {"client_errors": kinds, **({"more_errors": self._others} if self._others else {})}


def _readable(reason: str) -> str:
    """Returns "ValueError: bad" for what Flower words as "<class 'ValueError'>:<'bad'>"."""
    found = _FLOWERS.fullmatch(reason)
    text = reason if found is None else ": ".join(part for part in found.groups() if part)
    text = " ".join(text.split())
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
