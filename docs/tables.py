"""The tables of methods in README.md and docs/methods.md: python docs/tables.py.

Each stands between two marks, `<!-- table: NAME -->` and `<!-- end of table -->`, and is made from
the members' comments in fl/conf, and from the classes that they name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from omegaconf import OmegaConf

from fl.runs.groups import groups, header, parts_of
from fl.runs.usage import GROUPS

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "README.md", ROOT / "docs" / "methods.md")
_MARKED = re.compile(r"(<!-- table: (\S+) -->\n).*?(<!-- end of table -->)", re.DOTALL)
_WITH_RULES = ("strategy", "client")
_NOT_METHODS = ("experiment",)
_FAMILIES = {  # in the order of the table, to what drives their members
    "rounds: a server waits for those that it has asked": ("Rounds",),
    "first replies: it goes on when enough are there": ("ParameterServer",),
    "asynchronous: it steps by what arrives": ("Events", "Polling"),
    "several models at once": ("SimultaneousEvents", "SimultaneousRounds"),
    "no server: nodes average with their neighbours": ("Gossip", "Pairs", "Walks"),
    "outer steps: islands train by themselves, and meet": ("OuterSteps",),
    "replicas: workers stay equal, by small messages": ("Replicas",),
}


def target(group: str, name: str) -> str:
    """Returns the import path of what a member makes; of a driver's member, that of its rule.

    Where clients hold parts of the model, and the server averages them, the method is how these are
    taken.
    """
    parts = [*parts_of(group, name)]

    def first(path: str) -> str:
        found = (OmegaConf.select(part, path) for part in parts)
        return next((str(value) for value in found if value), "")

    rule = first("rule._target_") if group in _WITH_RULES else ""
    if rule.endswith(".FedAvg"):
        rule = first("sub_models.extraction._target_") or rule
    return rule or first("_target_")


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


def of_families() -> str:
    """Returns the table of the kinds of strategies, with the names of each."""
    members: dict[str, list[str]] = {kind: [] for kind in _FAMILIES}
    for name in dict(groups("strategy"))["strategy"]:
        members[family(name)].append(f"`{name}`")
    return rows([["kind", "strategies"], *([kind, ", ".join(of)] for kind, of in members.items())])


def of_groups() -> str:
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
        own = {"families": of_families, "groups": of_groups}.get(found[2])
        return found[1] + (own() if own else of_group(found[2], to_root)) + found[3]

    return _MARKED.sub(made, page.read_text(encoding="utf-8"))


if __name__ == "__main__":
    for each in PAGES:
        each.write_text(written(each), encoding="utf-8")
