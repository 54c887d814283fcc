"""Regret against communications, of agents that seldom talk.

    python experiments/cooperative_rl/run.py
    python experiments/cooperative_rl/run.py tables

The first plays all episodes, the second makes the tables anew of what is kept. Each way of talking
has the scale of its bonus, beta, from five processes that are not among those that are shown.
"""

from __future__ import annotations

import itertools
import math
import sys
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NamedTuple

sys.path.append(str(Path(__file__).parents[1]))
sys.path.append(str(Path(__file__).parent))

from lsvi import AsyncLSVI, LinearMDP, play
from results import Record, main
from tuned import paired

from fl.randomness import generator

EPISODES, H, P, STATES, ACTIONS, RIDGE = 2_000, 3, 4, 10, 5, 0.01
AGENTS, TUNING, SEEDS = (2, 8), range(100, 105), range(5)
BETAS = (0.1, 0.3, 1.0, 3.0)


class Way(NamedTuple):
    """A way of talking: alpha as a function of M, and whether data are shared."""

    alpha: Any
    shared: bool = True


WAYS = {
    "always": Way(lambda M: 0.0),
    "alpha = 1 / M^2": Way(lambda M: M**-2),
    "alpha = 1": Way(lambda M: 1.0),
    "alone, alpha = 1 / M^2": Way(lambda M: M**-2, shared=False),
}


def measured(name: str, agents: int, beta: float, seed: int, part: str) -> Record:
    """Returns what came of the episodes of one way of talking."""
    way = WAYS[name]
    mdp = LinearMDP.drawn(generator(seed, "mdp"), states=STATES, actions=ACTIONS, p=P, horizon=H)
    active = generator(seed, "agents", agents).integers(agents, size=EPISODES)
    rule = AsyncLSVI(way.alpha(agents), beta, RIDGE)
    played = play(rule, mdp, active, generator(seed, "episodes"), shared=way.shared)
    bound = rule.most_triggers(EPISODES, H, P, agents)
    return {
        "way": name,
        "agents": agents,
        "beta": beta,
        "seed": seed,
        "part": part,
        "regret": float(played.regret.sum()),
        "regret_quarter": float(played.regret[: EPISODES // 4].sum()),
        "talks": int(played.talks.sum()) if way.shared else 0,
        "bound": bound if math.isfinite(bound) and way.shared else float(EPISODES),
        "numbers": played.numbers,
    }


def measure() -> list[Record]:
    """Returns all records."""
    found: list[Record] = []
    for agents in AGENTS:
        for name in WAYS:
            tried = {
                beta: [measured(name, agents, beta, seed, "tune") for seed in TUNING]
                for beta in BETAS
            }
            best = min(tried, key=lambda beta: fmean(each["regret"] for each in tried[beta]))
            found += itertools.chain(*tried.values())
            found += [measured(name, agents, best, seed, "final") for seed in SEEDS]
    return found


def tables(records: list[dict[str, Any]]) -> str:
    """Returns the page's tables."""
    lines = [
        "| M | way | beta | regret | less always | regret, from a quarter of the episodes to all | "
        "talks | bound | numbers sent |",
        "|---:|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for agents in AGENTS:
        of = [each for each in records if each["agents"] == agents and each["part"] == "final"]
        base = {each["seed"]: each["regret"] for each in of if each["way"] == "always"}
        for name in WAYS:
            runs = [each for each in of if each["way"] == name]
            regret = {each["seed"]: each["regret"] for each in runs}
            grows = fmean(each["regret"] / each["regret_quarter"] for each in runs)
            talks = fmean(each["talks"] for each in runs)
            numbers = fmean(each["numbers"] for each in runs)
            less = "" if name == "always" else paired(regret, base, "regret")
            cells = [
                f"{agents} | {name} | {runs[0]['beta']:g}",
                f"{fmean(regret.values()):.0f} ± {stdev(regret.values()):.0f}",
                f"{less} | {grows:.2f} times",
                f"{talks:.0f} | {fmean(each['bound'] for each in runs):.0f} | {numbers:.3g}",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "| M | way | regret with beta = " + ", ".join(f"{b:g}" for b in BETAS) + " |"]
    lines.append("|---:|---|---|")
    for agents in AGENTS:
        for name in WAYS:
            tried: dict[float, list[float]] = {}
            for each in records:
                if (each["agents"], each["way"], each["part"]) == (agents, name, "tune"):
                    tried.setdefault(each["beta"], []).append(each["regret"])
            means = ", ".join(f"{fmean(regrets):.0f}" for regrets in tried.values())
            lines.append(f"| {agents} | {name} | {means} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main(__file__, measure, tables)
