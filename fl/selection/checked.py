"""What a selection says, refused where it cannot be: selections may be anybody's."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import Any

from fl.aggregation import shown, weight_of
from fl.errors import ConfigError
from fl.selection.selection import Ask, Choice, Opening, Selection, Trial


def trial_of(selection: Selection, state: Any, idle: Sequence[int]) -> tuple[Trial | None, Any]:
    """Returns what `Selection.trial` does.

    Raises:
        ConfigError: it is no `Trial`, or of clients that are not idle.
    """
    trial, state = _said(selection, "trial", selection.trial(state, idle), Trial, type(None))
    if trial is not None:
        _check_clients(selection, "trial", trial.clients, idle)
    return trial, state


def ask_of(selection: Selection, state: Any, opening: Opening) -> tuple[Ask | None, Any]:
    """Returns what `Selection.ask` does.

    Raises:
        ConfigError: it is no `Ask`, or of clients that are not there.
    """
    ask, state = _said(selection, "ask", selection.ask(state, opening), Ask, type(None))
    if ask is not None:
        _check_clients(selection, "ask", ask.clients, opening.here)
    return ask, state


def choice_of(selection: Selection, state: Any, opening: Opening) -> tuple[Choice, Any]:
    """Returns what `Selection.select` does.

    Raises:
        ConfigError: it is no `Choice`, of clients that are not idle, or with weights that are not
            positive and finite, one for each.
    """
    choice, state = _said(selection, "select", selection.select(state, opening), Choice)
    _check_clients(selection, "select", choice.clients, opening.idle)
    if choice.weights is not None:
        n, weights = len(choice.clients), list(choice.weights)
        if len(weights) != n:
            raise _wrong(selection, "select", f"{len(weights)} weights for {n} clients", "as many")
        for weight in weights:
            if not weight_of(weight):
                said = f"the weight {shown(weight)}"
                raise _wrong(selection, "select", said, "weights that are positive and finite")
    return choice, state


def _said(selection: Selection, method: str, said: Any, *kinds: type) -> tuple[Any, Any]:
    if not (type(said) is tuple and len(said) == 2 and isinstance(said[0], kinds)):
        names = " or ".join("None" if kind is type(None) else kind.__name__ for kind in kinds)
        raise _wrong(selection, method, shown(said), f"({names}, state)")
    return said


def _check_clients(
    selection: Selection, method: str, clients: Sequence[int], there: Sequence[int]
) -> None:
    known, seen = _Among(there), set[int]()
    for client in clients:
        if client not in known:
            said = f"client {shown(client)}, which is not among the {len(there)} it was given"
            raise _wrong(selection, method, said, "some of those, each once")
        if client in seen:
            raise _wrong(selection, method, f"client {client} twice", "each once")
        seen.add(client)


class _Among:
    """Says who is among some clients: without looking at all of them, where they are in order."""

    def __init__(self, there: Sequence[int]) -> None:
        self._there = there
        self._set: set[int] | None = None

    def __contains__(self, client: object) -> bool:
        if self._set is None and isinstance(client, int):
            place = bisect_left(self._there, client)
            if place < len(self._there) and self._there[place] == client:
                return True
        if self._set is None:
            self._set = set(self._there)
        return client in self._set


def _wrong(selection: Selection, method: str, said: str, right: str) -> ConfigError:
    name = type(selection).__name__
    return ConfigError(f"selection: {name}.{method} returns {said}; it must return {right}")
