"""What a member of one group has chosen in others, or would have, and how the user is told."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from fl.runs.groups import content

log = logging.getLogger("fl")

_OVERRIDE = "override /"


def announce(apart_from: Collection[str] = ()) -> None:
    """Prints and logs, one line for each member, what chosen members have set in other groups.

    Without a Hydra job there is nothing to tell.

    Args:
        apart_from: groups that the run does not read.
    """
    if not HydraConfig.initialized():
        return
    job = HydraConfig.get()
    asked = {override.lstrip("+~").split("=")[0] for override in job.overrides.task}
    for line in implied(job.runtime.choices, {*asked, *apart_from}):
        log.info(line)
        print(f"fl: {line}", flush=True)


def implied(choices: Mapping[str, str | None], asked: Collection[str]) -> list[str]:
    """Returns lines such as "strategy=fedasync sets client=proximal".

    Where the user has chosen another client than a member would, or another part of one, a line
    says so as well: a method may be what its clients do.

    Args:
        choices: the chosen member of each group.
        asked: groups whose member the user has chosen.
    """
    defaults = dict(_overridden("", "config"))
    lines = []
    for group, member in choices.items():
        if member is None or "@" in group:
            continue
        usual = dict(_overridden(group, defaults.get(group) or ""))  # what the default sets as well
        found = [
            f"{other}={chosen}"
            for other, chosen in dict(_overridden(group, member)).items()
            if choices.get(other) == chosen != usual.get(other, defaults.get(other))
            and other not in asked
        ]
        if found and group != "experiment":  # which is there to choose
            lines.append(f"{group}={member} sets {', '.join(found)}")
        for other, chosen in _overridden(group, member):
            given = choices.get(other)
            if other in asked and other.startswith("client") and given != chosen:
                lines.append(
                    f"{other}={given or 'null'} takes the place of {other}={chosen}, which "
                    f"{group}={member} is made with"
                )
    return lines


def _overridden(group: str, member: str) -> Iterator[tuple[str, str | None]]:
    """Yields the groups, with their members, that a member's list of defaults chooses outside it.

    For the root configuration, which has no group, these are the defaults of all groups.
    """
    keys = content(group, member)
    if keys is None:  # of a folder of the user's own
        return
    entries: Any = OmegaConf.to_container(keys.get("defaults") or OmegaConf.create([]))
    for entry in entries:
        if isinstance(entry, str):
            if entry != "_self_":
                yield from _overridden(group, entry)
            continue
        for key, chosen in entry.items():
            if key.endswith("@_here_"):  # what the member is made of
                for one in [chosen] if isinstance(chosen, str) else chosen or ():
                    yield from _overridden(key.removesuffix("@_here_").strip("/"), one)
                continue
            other, _, _ = key.removeprefix(_OVERRIDE).partition("@")
            if not group or key.startswith(_OVERRIDE):
                yield other, chosen
