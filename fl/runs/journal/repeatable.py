"""What in the source of somebody's ServerApp tells that it would not repeat itself.

A resumed run starts the ServerApp again and lets it meet the answers that it met before. That leads
to the same place only if it asks the same questions again. What decides in an app is not visible
from outside, but where it could get something that is never the same twice is.
"""

from __future__ import annotations

import ast
from collections.abc import Container, Iterable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path

_CALLS = {
    "the host's clock": (  # those that `fl.execution.virtual_time` leaves alone
        "os.times",
        "pandas.*.now",
        "pandas.*.today",
        "pandas.*.utcnow",
        "resource.getrusage",
        "time.clock_gettime",
        "time.clock_gettime_ns",
    ),
    "random numbers without a seed": (
        "os.getrandom",
        "os.urandom",
        "random.SystemRandom",
        "secrets.*",
        "torch.random.seed",
        "torch.seed",
        "uuid.uuid1",
        "uuid.uuid4",
    ),
    "threads or processes": (
        "_thread.*",
        "asyncio.*",
        "concurrent.futures.*",
        "multiprocessing.*",
        "os.fork",
        "subprocess.*",
        "threading.Thread",
        "threading.Timer",
        "torch.multiprocessing.*",
    ),
    "the network, or somebody's input": (
        "builtins.input",
        "http.*",
        "httpx.*",
        "requests.*",
        "socket.*",
        "urllib.request.*",
    ),
}
_SEEDED = ("numpy.random.default_rng", "random.Random", "numpy.random.RandomState")
"""Without a seed among their arguments, these take one from the operating system."""

_OF_CLIENTS = ("the host's clock", "random numbers without a seed")
_MOST = 3  # findings that are told


def unrepeatable(paths: Iterable[Path]) -> str | None:
    """Returns why an app with these files may not repeat itself; None if nothing speaks for it.

    Calls are looked for by name: one that is reached through another package, or whose name is made
    at run time, is not seen. A resumed run compares every message with the journal all the same.
    """
    found = _told(paths, _CALLS)
    if found is None:
        return None
    return (
        f"its ServerApp calls {found}, so a second run could send other messages. If none depends "
        "on them, checkpoint.trust=true keeps a journal"
    )


def unseeded(paths: Iterable[Path]) -> str | None:
    """Returns why clients with these files may answer differently in two runs; None likewise."""
    found = _told(paths, _OF_CLIENTS)
    if found is None:
        return None
    return (
        f"its ClientApp calls {found}: if what clients reply depends on them, two runs of one seed "
        "differ; `random`, numpy.random and torch are seeded for every task"
    )


def _told(paths: Iterable[Path], kinds: Container[str]) -> str | None:
    found = [
        f"{name} in {path.name}, line {line} ({what})"
        for path in paths
        for line, name, what in sorted(_findings(ast.parse(path.read_bytes(), str(path))))
        if what in kinds
    ]
    if not found:
        return None
    more = f" and {len(found) - _MOST} more calls" if len(found) > _MOST else ""
    return "; ".join(found[:_MOST]) + more


def _findings(tree: ast.Module) -> Iterator[tuple[int, str, str]]:
    aliases = _aliases(tree)
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = _name(node.func, aliases)
        if name is None:
            continue
        if name in _SEEDED and not node.args and not node.keywords:
            yield node.lineno, name, "random numbers without a seed"
        for what, patterns in _CALLS.items():
            if any(fnmatchcase(name, pattern) for pattern in patterns):
                yield node.lineno, name.removeprefix("builtins."), what


def _aliases(tree: ast.Module) -> dict[str, str]:
    """Returns what the names that a file imports stand for."""
    aliases = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                top = alias.name.partition(".")[0]
                aliases[alias.asname or top] = alias.name if alias.asname else top
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                aliases[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    return aliases


def _name(called: ast.expr, aliases: dict[str, str]) -> str | None:
    """Returns the full name of what is called, if it was imported or is built in."""
    parts: list[str] = []
    while isinstance(called, ast.Attribute):
        parts.append(called.attr)
        called = called.value
    if not isinstance(called, ast.Name):
        return None
    first = aliases.get(called.id)
    if first is None:
        if called.id != "input" or parts:
            return None
        first = "builtins.input"
    return ".".join([first, *reversed(parts)])
