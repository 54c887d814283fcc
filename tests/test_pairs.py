"""What goes with what: every strategy beside every other choice runs, or says at once why not.

The table of docs/compatibility.md is made of what happens; `python tests/test_pairs.py` writes
it.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from every_strategy import CLIENTS, CONF, SEVERAL, configured, ran

from fl.errors import ConfigError
from fl.runs.build import prepare
from fl.runs.compatibility import REFUSALS

PAGE = Path(__file__).parents[1] / "docs" / "compatibility.md"
STRATEGIES = sorted(path.stem for path in (CONF / "strategy").glob("[!_]*.yaml"))
LIARS = f"num_byzantine={CLIENTS // 4}"
CHOICES = {  # a column of the table, to what is set
    "attack on updates": ["attack=ipm", LIARS],
    "optimized attack": ["attack=ipm_optimized", LIARS],
    "attack on data": ["attack=label_flip", LIARS],
    "backdoor": ["attack=backdoor", LIARS],
    "`topk`": ["compressor=topk"],
    "`ef_topk_int8`": ["compressor=ef_topk_int8"],
    "`ef21`": ["compressor=ef21"],
    "`qsgd`": ["compressor=qsgd"],
    "`powersgd`": ["compressor=powersgd"],
    "`bf16`": ["compressor=bf16"],
    "downlink": ["compressor@downlink=ef21"],
    "attack and compressor": ["attack=ipm", LIARS, "compressor=ef_topk_int8"],
    "aggregator": ["aggregator=median"],
    "topology": ["topology=complete"],
    "client `sam`": ["client=sam"],
    "client `adamw`": ["client=adamw"],
    "client `momentum`": ["client=momentum"],
    "phones": ["fleet=mobile"],
}


def refusal(strategy: str, choice: str) -> str | None:
    """Returns why a pair is refused before anything starts; None if it is not."""
    try:
        prepare(configured(strategy, *overrides(strategy, choice)))
    except ConfigError as error:
        return str(error)
    return None


def overrides(strategy: str, choice: str) -> list[str]:
    """Returns what is set for a choice, in the place where several models have it."""
    chosen = CHOICES[choice]
    if strategy not in SEVERAL:
        return chosen
    of_a_task = {"client=": "client@tasks.digits.client="}
    if choice == "backdoor":  # in the task that has images
        of_a_task["attack="] = "attack@tasks.digits.attack="
    for short, place in of_a_task.items():
        chosen = [f"{place}{o[len(short) :]}" if o.startswith(short) else o for o in chosen]
    return chosen


def row(strategy: str) -> str:
    """Returns the table's row of a strategy."""
    cells = ["no" if refusal(strategy, choice) else "yes" for choice in CHOICES]
    return f"| `{strategy}` | {' | '.join(cells)} |"


@pytest.mark.parametrize("strategy", ["fedbuff"])
def test_the_page_says_what_goes_with_a_strategy(strategy):
    assert row(strategy) in PAGE.read_text("utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_pair_trains_or_is_refused_before_anything_starts_as_the_page_says(strategy):
    assert row(strategy) in PAGE.read_text("utf-8")
    for choice in CHOICES:
        if refusal(strategy, choice) is not None:
            continue
        quick = ["num_rounds=2", *overrides(strategy, choice)]
        if "fleet=mobile" in quick:
            quick += ["fleet/availability=always"]
        _, run = ran(strategy, *quick)
        assert run.summary["status"] in ("completed", "diverged"), choice


def rewrite() -> None:
    """Makes the page's table and reasons anew; says how many pairs are refused."""
    rows = [row(name) for name in STRATEGIES]
    head = f"| strategy | {' | '.join(CHOICES)} |\n|{'---|' * (len(CHOICES) + 1)}"
    reasons = [f"- {refusal}" for refusal in REFUSALS]
    page = PAGE.read_text("utf-8")
    for name, lines in (("pairs", [head, *rows]), ("reasons", reasons)):
        before, _, rest = page.partition(f"<!-- {name} -->\n")
        _, _, after = rest.partition(f"<!-- end of {name} -->")
        text = "\n".join(lines)
        page = f"{before}<!-- {name} -->\n{text}\n<!-- end of {name} -->{after}"
    PAGE.write_text(page, "utf-8")
    refused = sum(one.count("| no ") for one in rows)
    print(f"{refused} of {len(rows) * len(CHOICES)} pairs are refused")


if __name__ == "__main__":
    rewrite()
