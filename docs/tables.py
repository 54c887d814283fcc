"""The tables of README.md, some pages here, and experiments/README.md: python docs/tables.py.

Each stands between two marks, `<!-- table: NAME -->` and `<!-- end of table -->`. Those of methods
are made from the members' comments in fl/conf, and from the classes that they name; that of what a
summary says from fl/reports/extra.py; those of experiments from the two tables that each of their
pages begins with.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from omegaconf import DictConfig, OmegaConf

from fl.reports.extra import EXTRA
from fl.runs.groups import groups, header, parts_of
from fl.runs.usage import GROUPS

ROOT = Path(__file__).parents[1]
PAGES = (
    ROOT / "README.md",
    *(ROOT / "docs" / f"{name}.md" for name in ("methods", "simulation")),
    ROOT / "experiments" / "README.md",
)
_MARKED = re.compile(r"(<!-- table: (\S+) -->\n).*?(<!-- end of table -->)", re.DOTALL)
_WITH_RULES = ("strategy", "client")
_NOT_METHODS = ("experiment",)
_FAMILIES = {  # in the order of the table, to what drives their members
    "rounds: a server waits for those that it has asked": ("Rounds",),
    "first replies: it goes on when enough are there": ("ParameterServer", "CodedRounds"),
    "asynchronous: it steps by what arrives": ("Events", "Polling", "Regions"),
    "several models at once": ("SimultaneousEvents", "SimultaneousRounds"),
    "no server: nodes average with their neighbours": ("Gossip", "Pairs", "Walks", "Sampled"),
    "outer steps: islands train by themselves, and meet": ("OuterSteps", "Collaboration"),
    "stages: clients hold parts of one model, one after the other": ("Pipeline", "SWARM", "Petals"),
    "replicas: workers stay equal, by small messages": ("Replicas",),
}

VERDICTS = {  # to what they say of a claim
    "(a) reproduced": "the published number, where the setting is the paper's, or does not matter",
    "(b) in sign only": "the order or direction, in our setting; the number differs, or is unknown",
    "(c) not reproduced": "not so, in the paper's own setting",
    "(d) cannot be had here": "the paper's setting costs too much, and nothing stands in for it",
    "undecided": "the runs do not tell: too few seeds, a spread that holds both orders, or a"
    " setting too far from the paper's; `ours` has what was seen",
}
SHORT_OF_PROTOCOL = {  # to what is missing
    "one seed": "a claim is of one seed, so that its spread is not known",
    "two seeds": "a claim is of two",
    "rates not tuned": "all methods at one rate, or at their defaults",
    "rates tuned in part": "some rates, or some methods' or settings' alone",
    "a best rate at the edge of its grid": "a better one may lie outside",
    "unequal trials": "some methods had more points of their grids than others",
    "rates chosen on test examples": "of another seed, but on the examples that are reported",
    "unequal work": "methods differ in steps, in clients at work, or in the time at which they end",
    "too few steps": "far fewer than in the paper, where the claim is about the end",
    "rules changed since": "of a method that is compared; the page says which rows are outdated",
}
EXPERIMENT_FAMILIES = (  # in the order of the page
    "rounds",
    "first replies",
    "asynchronous",
    "several models at once",
    "no server",
    "outer steps",
    "stages",
    "machines between clients and server",
    "compression",
    "robust aggregation",
    "clusters and personal models",
    "parts of a model",
    "predictions",
    "energy",
)
_TOP = re.compile(
    r"""\A\#\ (?P<title>.+)\n\n
    \|\ paper\ \|\ claim\ \|\ published\ \|\ ours\ \|\ seeds\ \|\ verdict\ \|\n\|[-|]+\n
    (?P<claims>(?:\|.+\n)+)\n
    \|\ \|\ \|\n\|---\|---\|\n
    (?P<facts>(?:\|.+\n){4})\n""",
    re.VERBOSE,
)


class Claim(NamedTuple):
    """What a paper says, and what the runs of a page say of it: the cells of a row."""

    paper: str
    claim: str
    published: str
    ours: str
    seeds: str
    verdict: str


class Experiment(NamedTuple):
    """What a page of experiments/ says at its top."""

    page: str  # from experiments/
    claims: list[Claim]
    family: str
    protocol: str
    cost: str
    command: str

    @property
    def link(self) -> str:
        """The page, from experiments/README.md."""
        return f"[{self.page}]({self.page}/README.md)"

    @property
    def minutes(self) -> float | None:
        """The cost, or None if it was not recorded."""
        found = re.match(r"([\d.]+) min\b", self.cost)
        return float(found[1]) if found else None


def cells_of(lines: str) -> list[list[str]]:
    """Returns the cells of lines of a Markdown table."""
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines.splitlines()]


def experiment(page: Path) -> Experiment:
    """Returns what a page says at its top.

    Raises:
        ValueError: it does not begin with a title and the two tables.
    """
    found = _TOP.match(page.read_text(encoding="utf-8"))
    if not found:
        raise ValueError(f"{page} does not begin with the tables of experiments/README.md")
    claims = [Claim(*row) for row in cells_of(found["claims"])]
    place = page.parent.relative_to(ROOT / "experiments").as_posix()
    return Experiment(place, claims, **dict(cells_of(found["facts"])))


def experiments() -> list[Experiment]:
    """Returns all experiments, by family."""
    found = [experiment(page) for page in sorted((ROOT / "experiments").glob("*/**/README.md"))]
    return sorted(found, key=lambda each: EXPERIMENT_FAMILIES.index(each.family))


def target(group: str, name: str) -> str:
    """Returns the import path of what a member makes; of a driver's member, that of its rule.

    Where clients hold parts of the model, and the server averages them, the method is how these are
    taken; a member that makes several things is named by the first.
    """
    parts = [*parts_of(group, name)]

    def first(path: str) -> str:
        found = (OmegaConf.select(part, path) for part in parts)
        return next((str(value) for value in found if value), "")

    rule = first("rule._target_") if group in _WITH_RULES else ""
    if rule.endswith(".FedAvg"):
        rule = first("sub_models.extraction._target_") or rule
    several = (each for part in parts for each in part.values() if isinstance(each, DictConfig))
    found = rule or first("_target_")
    return found or next((str(each["_target_"]) for each in several if "_target_" in each), "")


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


def of_verdicts() -> str:
    """Returns the table of every family's claims."""
    title = ["page", "paper", "claim", "published", "ours", "seeds", "verdict"]
    found, parts = experiments(), []
    for family in EXPERIMENT_FAMILIES:
        table = [[e.link, *claim] for e in found if e.family == family for claim in e.claims]
        parts.append(f"\n### {family.capitalize()}\n\n{rows([title, *table])}")
    return "".join(parts)


def of_pages() -> str:
    """Returns the table of what pages lack of the protocol, what they cost, and their commands."""
    title = ["page", "follows the protocol", "cost", "command"]
    return rows([title, *([e.link, e.protocol, e.cost, e.command] for e in experiments())])


def of_counts() -> str:
    """Returns how many claims have which verdict, and what the pages cost together."""
    found = experiments()
    verdicts = [claim.verdict for each in found for claim in each.claims]
    minutes = [each.minutes for each in found if each.minutes is not None]
    counts = [[verdict, str(verdicts.count(verdict)), what] for verdict, what in VERDICTS.items()]
    follow = sum(each.protocol == "yes" for each in found)
    return (
        f"{rows([['verdict', 'claims', 'what it says'], *counts])}\n"
        f"{len(verdicts)} claims on {len(found)} pages, {follow} of which follow the protocol. "
        f"The {len(minutes)} pages whose cost is recorded took {sum(minutes) / 60:.1f} hours "
        f"together, of one core or of two that other work shared; of the other "
        f"{len(found) - len(minutes)} it is not recorded.\n"
    )


def of_protocol() -> str:
    """Returns the table of what a page may lack."""
    return rows([["`protocol: no:`", "what is missing"], *SHORT_OF_PROTOCOL.items()])


def of_extra() -> str:
    """Returns the table of what summary.json has under `extra`."""
    rows = ["| key | |", "|---|---|"]
    for key, (said, below) in EXTRA.items():
        parts = [f"`{name}`: {what}" for name, what in below.items()]
        rows.append(f"| `{key}` | {'. '.join([said, '; '.join(parts)] if parts else [said])} |")
    return "\n".join(rows) + "\n"


OWN = {
    "families": of_families,
    "groups": of_groups,
    "verdicts": of_verdicts,
    "pages": of_pages,
    "counts": of_counts,
    "protocol": of_protocol,
    "extra": of_extra,
}
"""What makes the tables that are not those of a group."""


def written(page: Path) -> str:
    """Returns a page's text with its tables as they should be."""
    to_root = "../" * (len(page.relative_to(ROOT).parts) - 1)

    def made(found: re.Match[str]) -> str:
        own = OWN.get(found[2])
        return found[1] + (own() if own else of_group(found[2], to_root)) + found[3]

    return _MARKED.sub(made, page.read_text(encoding="utf-8"))


if __name__ == "__main__":
    for each in PAGES:
        each.write_text(written(each), encoding="utf-8")
