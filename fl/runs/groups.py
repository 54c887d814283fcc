"""What the folder of configurations holds: groups, members, what these are made of and say."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import OmegaConf

_COMMAND = re.compile(r"(?:FL_DATA_DIR=\.\.\. )?fl .*")
_REPRODUCED = "Reproduced: "


class Header(NamedTuple):
    """The comments above a member's keys.

    Attributes:
        command: a line that uses it.
        what: what it is, with its paper.
        reproduced: where its paper's result is beside ours; empty if nowhere.
    """

    command: str
    what: str
    reproduced: str


def groups(name: str = "", own: Path | None = None) -> Iterator[tuple[str, list[str]]]:
    """Yields the groups that members are chosen from, at and below a group; and their members.

    Args:
        name: of the group; "" for all.
        own: a folder of the user's, in the place of the project's.
    """
    folder = _folder(name, own)
    entries = sorted(folder.iterdir(), key=lambda e: e.name) if folder.is_dir() else []
    members = [e.name.removesuffix(".yaml") for e in entries if e.name.endswith(".yaml")]
    if name and members:
        yield name, members
    for entry in entries:
        if entry.is_dir() and not entry.name.startswith("_"):
            yield from groups(f"{name}/{entry.name}" if name else entry.name, own)


@cache
def header(group: str, name: str, own: Path | None = None) -> Header:
    """Returns what the comments above a member's keys say."""
    found: dict[str, list[str]] = {"command": [], "what": [], "reproduced": []}
    for line in text(group, name, own).splitlines():
        if not line.startswith("#"):
            break
        said = line.removeprefix("#").strip()
        if said.startswith(_REPRODUCED):
            found["reproduced"].append(said.removeprefix(_REPRODUCED))
        elif _COMMAND.fullmatch(said) and not found["command"]:
            found["command"].append(said)
        elif not said.startswith("@"):
            found["what"].append(said)
    return Header(**{key: " ".join(lines) for key, lines in found.items()})


def text(group: str, name: str, own: Path | None = None) -> str:
    """Returns a member's file."""
    return _folder(group, own).joinpath(f"{name}.yaml").read_text("utf-8")


@cache
def top_groups() -> tuple[str, ...]:
    """Returns the groups of the root, without what their members are made of."""
    folders = [entry for entry in _folder("").iterdir() if entry.is_dir()]
    return tuple(sorted(f.name for f in folders if not f.name.startswith("_")))


@cache
def content(group: str, name: str) -> Any:
    """Returns a member's keys, or those of the root with group ""; None of the user's own."""
    file = _folder(group).joinpath(f"{name}.yaml")
    return OmegaConf.create(file.read_text("utf-8")) if file.is_file() else None


@cache
def members_of(group: str) -> tuple[tuple[str, Any], ...]:
    """Returns the members of a group, names and contents."""
    names = [entry.name for entry in _folder(group).iterdir()]
    members = sorted(name.removesuffix(".yaml") for name in names if name.endswith(".yaml"))
    return tuple((name, content(group, name)) for name in members)


@cache
def usual_members() -> tuple[tuple[str, str], ...]:
    """Returns the groups that have a default member, with it."""
    root: Any = OmegaConf.to_container(content("", "config"), resolve=False)
    entries = [entry for entry in root["defaults"] if isinstance(entry, dict)]
    return tuple((group, name) for entry in entries for group, name in entry.items() if name)


def bases_of(group: str, name: str) -> frozenset[str]:
    """Returns what a member is made of, by the names of what it has from `_base`.

    Of a member of the user's own that is nothing.
    """
    content = dict(members_of(group)).get(name) or {}
    return frozenset(
        f"{key}={one}"
        for entry in content.get("defaults") or ()
        if not isinstance(entry, str)
        for key, chosen in entry.items()
        if str(key).startswith("/_base/")
        for one in ([chosen] if isinstance(chosen, str) else chosen)
    )


def parts_of(group: str, name: str) -> Iterator[Any]:
    """Yields the contents of a member, and of all that it is made of, each at its place in it."""
    content = dict(members_of(group))[name]
    yield content
    for entry in content.get("defaults") or ():
        if isinstance(entry, str):
            if entry != "_self_":
                yield from parts_of(group, entry)
            continue
        for key, chosen in entry.items():
            if key.startswith("override "):
                continue
            path, _, place = key.partition("@")
            other = path[1:] if path[0] == "/" else f"{group}/{path}"
            for one in [chosen] if isinstance(chosen, str) else chosen or ():
                for part in parts_of(other, one):
                    if place != "_here_":
                        OmegaConf.update(around := OmegaConf.create(), place or path, part)
                        part = around
                    yield part


def _folder(group: str, own: Path | None = None) -> Traversable:
    return (own or files("fl").joinpath("conf")).joinpath(*group.split("/"))


def named_group(override: str) -> tuple[str, str]:
    """Returns the name of the group that an override may be for, with and without its package."""
    name = override.lstrip("+~").split("=")[0]
    return name, name.split("@")[0]


def key_of(override: str) -> str:
    """Returns the key that an override is for: the package of a group, if it names one."""
    name, group = named_group(override)
    package = name.partition("@")[2].rpartition(":")[2]
    return package or group.replace("/", ".")


def top_of(key: str) -> str:
    """Returns the first part of a dotted key."""
    return key.partition(".")[0]


def is_choice(override: str) -> bool:
    """Returns whether an override is for a group of ours."""
    group = named_group(override)[1]
    return files("fl").joinpath("conf", *group.split("/")).is_dir()


def without_null(words: Iterable[str]) -> list[str]:
    """Returns the words of a command line, with ~GROUP for GROUP=null, which Hydra refuses."""
    return [
        f"~{name}" if value == "null" and name[:1] not in "+~-" and is_choice(word) else word
        for word in words
        for name, _, value in [word.partition("=")]
    ]
