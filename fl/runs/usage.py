"""What `fl` says of itself, and the words of its command line that Hydra would not understand."""

from __future__ import annotations

import platform
import shutil
import textwrap
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from importlib import metadata
from importlib.resources import files
from importlib.resources.abc import Traversable

from fl.errors import ConfigErrors

COMMANDS = ("report", "resume")

_USAGE = """\
Federated learning with real training in simulated time.

  fl                        100 phones learn handwritten digits: the defaults
  fl KEY=VALUE ...          one run; GROUP=MEMBER chooses from the groups below
  fl +experiment=demo       the run of `make demo`
  fl -m strategy=fedavg,fedadam seed=0,1,2
                            a sweep: every combination, and one table of them
  fl app=DIR                any Flower app directory
  fl resume DIR             goes on with a run that was killed or interrupted
  fl report DIR ...         an HTML page about runs and sweeps

  fl KEY=VALUE ... --cfg job    shows a run's configuration, and runs nothing
  fl --version                  fl's, and of what its results depend on
  fl report --help, fl resume --help, fl --hydra-help (Hydra's own flags)
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
    if "--help" in words or "-h" in words:
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
    """Returns how to use the command, with the groups and their members."""
    width = min(shutil.get_terminal_size().columns, _WIDEST)
    lines = [_USAGE, "Groups and their members:", ""]
    for name, members in groups(files("fl").joinpath("conf")):
        listed = f"{name}: {', '.join(members)}"
        lines.append(textwrap.fill(listed, width, subsequent_indent="    "))
    return "\n".join(lines)


def groups(folder: Traversable, name: str = "") -> Iterator[tuple[str, list[str]]]:
    """Yields the groups of configurations in a folder, and their members that can be chosen."""
    entries = sorted(folder.iterdir(), key=lambda entry: entry.name)
    members = [e.name.removesuffix(".yaml") for e in entries if e.name.endswith(".yaml")]
    if name and members:
        yield name, members
    for entry in entries:
        if entry.is_dir() and not entry.name.startswith("_"):
            yield from groups(entry, f"{name}/{entry.name}" if name else entry.name)


def _installed(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def _strange(word: str) -> str:
    near = get_close_matches(word, COMMANDS, n=1)
    hint = f"did you mean fl {near[0]}?" if near else "the commands are report and resume"
    return f"{word!r} is neither KEY=VALUE nor a command; {hint}"
