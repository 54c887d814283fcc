"""The tables of methods in README.md and docs/methods.md: python docs/tables.py.

Each stands between two marks, `<!-- table: NAME -->` and `<!-- end of table -->`, and is made from
the members' comments in fl/conf, and from the classes that they name.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable
from pathlib import Path

from hydra.utils import get_object
from omegaconf import OmegaConf

from fl.runs.groups import groups, header, parts_of
from fl.runs.usage import GROUPS

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "README.md", ROOT / "docs" / "methods.md")
_MARKED = re.compile(r"(<!-- table: (\S+) -->\n).*?(<!-- end of table -->)", re.DOTALL)
_WITH_RULES = ("strategy", "client")
_OF_RULES = ("sub_models.extraction._target_", "rule._target_")
_NOT_METHODS = ("experiment",)
_FAMILIES = {  # in the order of the table, to what drives their members
    "rounds": ("Rounds",),
    "first replies": ("ParameterServer",),
    "asynchronous": ("Events", "Polling"),
    "several models": ("SimultaneousEvents", "SimultaneousRounds"),
    "no server": ("Gossip", "Pairs", "Walks"),
    "outer steps": ("OuterSteps",),
    "replicas": ("Replicas",),
}


def target(group: str, name: str) -> str:
    """Returns the import path of what a member makes; of a driver's member, that of its rule.

    Where clients hold parts of the model, the method is how these are taken.
    """
    paths = [*_OF_RULES, "_target_"] if group in _WITH_RULES else ["_target_"]
    parts = parts_of(group, name)
    found = (OmegaConf.select(part, path) for part in parts for path in paths)
    return next((str(value) for value in found if value), "")


def beside(name: str) -> str:
    """Returns what clients have that makes a method of FedAvg, where a strategy is that; or ""."""
    if not target("strategy", name).endswith(".FedAvg"):
        return ""
    for part in parts_of("strategy", name):
        for override in part.get("defaults") or []:
            (place, member), *_ = override.items() if hasattr(override, "items") else [("", "")]
            group = str(place).removeprefix("override /").partition("@")[0]
            if group.split("/")[0] == "client":
                return target(group, member).rpartition(".")[2]
    return ""


def family(name: str) -> str:
    """Returns the family of a strategy, by what drives it."""
    found = (OmegaConf.select(part, "_target_") for part in parts_of("strategy", name))
    driver = next(str(path).rpartition(".")[2] for path in found if path)
    return next(kind for kind, drivers in _FAMILIES.items() if driver in drivers)


def linked(text: str, to_root: str) -> str:
    """Returns text in which papers, pages and experiments are links."""
    text = re.sub(r"arXiv:(\d{4}\.\d{4,5})", r"[\1](https://arxiv.org/abs/\1)", text)
    text = re.sub(r"\bdocs/(\w+\.md)", r"[\1](\1)" if to_root else r"[\1](docs/\1)", text)
    return re.sub(
        r"\bexperiments/(\w+)", rf"[experiments/\1]({to_root}experiments/\1/README.md)", text
    )


def rows(cells: Iterable[Iterable[str]]) -> str:
    """Returns lines of a Markdown table; the first has the titles."""
    first, *others = [f"| {' | '.join(row)} |\n" for row in cells]
    return first + "|---" * (first.count(" | ") + 1) + "|\n" + "".join(others)


def of_group(group: str, to_root: str) -> str:
    """Returns the table of a group's members."""
    reproduced = group == "strategy"
    table = [["config", "what", "class", *(["reproduced"] if reproduced else [])]]
    for name in dict(groups(group))[group]:
        said, made = header(group, name), target(group, name)
        row = [f"`{name}`", linked(said.what, to_root), f"`{made}`" if made else ""]
        table.append([*row, *([linked(said.reproduced, to_root)] if reproduced else [])])
    return rows(table)


def of_methods(to_root: str) -> str:
    """Returns the table of all strategies, one line for those that share a rule."""
    members: dict[tuple[str, str], list[str]] = {}
    for name in dict(groups("strategy"))["strategy"]:
        members.setdefault((target("strategy", name), beside(name)), []).append(name)
    table = [["method", "kind", "paper", "config", "headline result"]]
    order, kinds = list(_FAMILIES), {made: family(names[0]) for made, names in members.items()}

    def place(made: tuple[str, str]) -> tuple[int, str, str]:
        rule, part = made
        return order.index(kinds[made]), rule.rpartition(".")[2].lower(), part.lower()

    for key in sorted(members, key=place):
        made, part = key
        said = [header("strategy", name) for name in members[key]]
        papers = dict.fromkeys(re.findall(r"arXiv:\d{4}\.\d{4,5}", " ".join(s.what for s in said)))
        file = Path(inspect.getfile(get_object(made))).relative_to(ROOT)
        results = dict.fromkeys(linked(s.reproduced, to_root) for s in said if s.reproduced)
        table.append(
            [
                f"[{made.rpartition('.')[2]}]({to_root}{file})" + f" with {part}" * bool(part),
                kinds[key],
                linked(", ".join(papers), to_root),
                ", ".join(f"`strategy={name}`" for name in members[key]),
                "; ".join(results) or "not run",
            ]
        )
    return rows(table)


def of_groups(to_root: str) -> str:
    """Returns the table of the groups of the root and the names of their members."""
    table = [["group", "what", "members"]]
    for group, what in GROUPS.items():
        members = dict(groups(group))[group] if group not in _NOT_METHODS else []
        if members and group != "strategy":
            table.append([f"`{group}`", what, ", ".join(f"`{name}`" for name in members)])
    return rows(table)


def written(page: Path) -> str:
    """Returns a page's text with its tables as they should be."""
    to_root = "../" * (len(page.relative_to(ROOT).parts) - 1)

    def made(found: re.Match[str]) -> str:
        own = {"methods": of_methods, "groups": of_groups}.get(found[2])
        return found[1] + (own(to_root) if own else of_group(found[2], to_root)) + found[3]

    return _MARKED.sub(made, page.read_text(encoding="utf-8"))


if __name__ == "__main__":
    for each in PAGES:
        each.write_text(written(each), encoding="utf-8")
