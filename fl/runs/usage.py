"""What `fl` says of itself, and the words of its command line that Hydra would not understand."""

from __future__ import annotations

import platform
import shutil
import textwrap
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import metadata
from pathlib import Path

from fl.errors import ConfigError, ConfigErrors
from fl.runs.groups import groups, header, text

COMMANDS = ("compare", "help", "init", "partition", "report", "resume", "tune")


# In the order in which one asks for them.
GROUPS = {
    "strategy": "the algorithm",
    "selection": "who trains in a round",
    "client": "how clients train",
    "data": "what is learnt from",
    "partition": "who has which examples",
    "model": "what is trained",
    "adapter": "what little of it is trained",
    "tasks": "several of these at once",
    "fleet": "devices, links, when clients are there",
    "power": "below which power devices compute",
    "battery": "that tasks empty, and what clients need to be there",
    "network": "links that clients share on the way to the server",
    "hierarchy": "machines that add updates up on their way",
    "runtime": "what software takes on the way",
    "topology": "who hears whom, without a server",
    "allreduce": "how workers come to have a mean, without a server",
    "aggregator": "how updates become one",
    "preaggregation": "what happens to them before",
    "attack": "what Byzantine clients do",
    "compressor": "how what is sent is made small",
    "feedback": "what becomes of what was not sent",
    "length": "how many rounds, of what size",
    "goal": "what is measured and aimed at",
    "executor": "where clients run",
    "checkpoint": "what a killed run goes on from",
    "experiment": "papers' settings, +experiment=...",
}

_USAGE = """\
Federated learning with real training in simulated time.

  fl                        100 phones learn handwritten digits: the defaults
  fl KEY=VALUE ...          one run; GROUP=MEMBER chooses from the groups below
  fl help GROUP[=MEMBER]    what the members of a group are; the keys of one
  fl +experiment=demo       the run of `make demo`
  fl -m strategy=fedavg,fedadam seed=0,1,2
                            a sweep: every combination, and one table of them
  fl app=DIR                any Flower app directory
  fl init DIR               a project with data, a model and a method of its own
  fl partition KEY=VALUE ...
                            draws who has which examples, and runs nothing
  fl calibrate NAME         measures what software and processor take
  fl resume DIR             goes on with a run that was killed or interrupted
  fl tune KEY=A,B,C ...     which values a method is best at
  fl report DIR ...         a page about runs and sweeps; --live follows them
  fl compare A B            why two runs differ, and where they first part

  fl KEY=VALUE ... --cfg job    shows a run's configuration, and runs nothing
  fl --version                  fl's, and of what its results depend on
  fl COMMAND --help             of init, partition, calibrate, report ...
  fl --hydra-help               Hydra's own flags
"""
_WIDEST = 100
_VALUED = (  # Hydra's flags that take the next word
    *("--cfg", "-c", "--config-dir", "-cd", "--config-name", "-cn", "--config-path", "-cp"),
    *("--experimental-rerun", "--info", "-i", "--package", "-p"),
)
_PLAIN = (
    *("--help", "-h", "--hydra-help", "--multirun", "-m", "--resolve", "--run", "-r"),
    *("--shell-completion", "-sc", "--version"),
)


def answer(words: Sequence[str]) -> str | None:
    """Returns what is to be printed instead of a run; None if there is to be one.

    Args:
        words: of the command line.

    Raises:
        ConfigError: words are neither overrides nor flags.
    """
    first, *others = given(words) or [""]
    if first == "help" and others:
        folder = flag(words, "--config-dir", "-cd")
        places = (None, Path(folder)) if folder else (None,)
        return "\n".join(_about(word, places) for word in others)
    if first == "help" or "--help" in words or "-h" in words:
        return help_text()
    if "--version" in words:
        return version()
    strangers = [_strange(w) for w in given(words) if "=" not in w and not w.startswith("~")]
    flags = [w.partition("=")[0] for w in words if w.startswith("-")]
    for unknown in (name for name in flags if name not in _VALUED + _PLAIN):
        near = get_close_matches(unknown, _VALUED + _PLAIN, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        strangers.append(f"there is no option {unknown}{hint} (fl --help and fl --hydra-help)")
    if strangers:
        raise ConfigErrors(*strangers)
    return None


def given(words: Sequence[str]) -> list[str]:
    """Returns the overrides on a command line."""
    found, value = [], False
    for word in words:
        if not value and not word.startswith("-"):
            found.append(word)
        value = word in _VALUED
    return found


def flag(words: Sequence[str], *names: str) -> str | None:
    """Returns the value of a flag; None if it is not there."""
    for i, word in enumerate(words):
        name, equals, value = word.partition("=")
        if name in names:
            return value if equals else next(iter(words[i + 1 :]), None)
    return None


def version() -> str:
    """Returns the versions of this package and of what its results depend on."""
    others = ", ".join(f"{name} {_installed(name)}" for name in ("flwr", "torch", "ray"))
    return f"fl {_installed('fl-simulator')} (Python {platform.python_version()}, {others})"


def help_text() -> str:
    """Returns how to use the command, with the groups and some of their members."""
    lines = [_USAGE, "Groups (fl help GROUP lists the members and what they are):", ""]
    first = max(map(len, GROUPS)) + 2
    for group, what in GROUPS.items():
        said = f"{what}: {', '.join(dict(groups(group))[group])}"
        lines.append(
            f"{group:<{first}}{textwrap.shorten(said, _width() - first, placeholder=' ...')}"
        )
    return "\n".join(lines)


def _about(word: str, places: Sequence[Path | None]) -> str:
    """Returns the members of a group and of those below it, or the text of one member.

    Args:
        word: GROUP or GROUP=MEMBER.
        places: None for the project's members, folders for those of the user's own.

    Raises:
        ConfigError: there is no such group or member.
    """
    group, _, member = word.partition("=")
    found: dict[str, dict[str, Path | None]] = {}
    for place in places:
        if group in dict(groups(own=place)):
            for name, members in groups(group, place):
                found.setdefault(name, {}).update(dict.fromkeys(members, place))
    if not found:
        raise ConfigError(f"there is no group {group!r}; there are: {', '.join(GROUPS)}")
    if member:
        if member not in found[group]:
            raise ConfigError(f"there is no {word}; there are: {', '.join(found[group])}")
        return text(group, member, found[group][member])
    lines = []
    for name, of in found.items():
        lines += [f"{name}=..."]
        for each, place in of.items():
            said = header(name, each, place).what
            lines.append(
                textwrap.fill(
                    f"{each}: {said}", _width(), initial_indent="  ", subsequent_indent="    "
                )
            )
    return "\n".join(lines)


def _width() -> int:
    return min(shutil.get_terminal_size().columns, _WIDEST)


def _installed(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def _strange(word: str) -> str:
    near = get_close_matches(word, COMMANDS, n=1)
    hint = (
        f"did you mean fl {near[0]}?"
        if near
        else "the commands are compare, help, init, partition, report and resume"
    )
    return f"{word!r} is neither KEY=VALUE nor a command; {hint}"
