"""The claims that can be measured again in seconds, beside the verdicts of their pages.

    FL_DATA_DIR=... python experiments/quick.py [PAGE ...]

`make reproduce-quick` runs all. A check measures the least that its claim can be seen in: closed
forms and quadratics as their pages have them, and else one of a page's seeds at the settings that
were best there, for as many rounds as it takes. So it says that a verdict still holds with this
code, and no more; a page's own command says how far it is to be believed. What is undecided has
nothing to hold, and is not here. Ends with status 1 if a verdict does not hold.
"""

from __future__ import annotations

import math
import runpy
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import fl

HERE = Path(__file__).parent
sys.path.append(str(HERE.parent / "docs"))

from tables import Claim, experiment  # noqa: E402 - found by the line above

Measured = tuple[str, bool]
"""What was measured, and whether the page's verdict holds."""


@dataclass(frozen=True)
class Check:
    """A claim of a page, which is named by how it begins there, and how it is measured."""

    page: str
    claim: str
    measure: Callable[[], Measured]

    @property
    def said(self) -> Claim:
        """What the page says of the claim.

        Raises:
            ValueError: not exactly one of its claims begins like this.
        """
        found = experiment(HERE / self.page / "README.md").claims
        (said,) = [each for each in found if each.claim.startswith(self.claim)]
        return said


CHECKS: list[Check] = []


def check(page: str, claim: str) -> Callable[[Callable[[], Measured]], Callable[[], Measured]]:
    """Returns a decorator that makes a function the check of a claim."""

    def added(measure: Callable[[], Measured]) -> Callable[[], Measured]:
        CHECKS.append(Check(page, claim, measure))
        return measure

    return added


def script(path: str) -> dict[str, Any]:
    """Returns the names of a page's script."""
    return runpy.run_path(str(HERE / path))


@cache
def run(*overrides: str) -> Any:
    """Returns the evaluations of a run in this process, a data frame."""
    quiet = ("executor=serial", "progress=false", "views=false")
    return fl.run(*overrides, *quiet).frame()


def end(rows: Any, metric: str) -> float:
    """Returns the mean of the last fifth of the evaluations, as the pages do."""
    values = rows[metric].dropna()
    return float(values.tail(math.ceil(len(values) / 5)).mean())


def first(rows: Any, met: Any, cost: str = "round") -> float:
    """Returns when the first of two evaluations in a row was met; infinity if none was."""
    both = rows[met & met.shift(-1, fill_value=False)]
    return float(both[cost].iloc[0]) if len(both) else math.inf


@check("optex", "with N gradients in parallel")
def _() -> Measured:
    page = script("optex/quadratics.py")
    fewer = []
    for kappa, sigma in page["CASES"].values():
        rounds = {}
        for n in (1, 4):
            points = [
                (page["OptEx"](n, page["HISTORY"], length=length), rate)
                for length in page["LENGTHS"][: None if n > 1 else 1]
                for rate in page["RATES"]
            ]
            best = min(points, key=lambda point: page["rounds"](*point, kappa, sigma, 0))
            rounds[n] = page["rounds"](*best, kappa, sigma, 1)
        fewer.append(rounds[1] / rounds[4])
    said = ", ".join(f"{each:.1f}" for each in fewer)
    return f"SGD, N = 4: {said} times", min(fewer) > 1


@check("dedloc", "they average faster than equal shares")
def _() -> Measured:
    page = script("dedloc/times.py")
    fleet = page["bed"](16)
    took = {name: page["averaging_s"](fleet, by) for name, by in page["BY"].items()}
    *others, ours = took.values()
    return f"{ours:.1f} s against {min(others):.1f}", ours < min(others)


@check("checkpoints", "the best interval is about sqrt(2 C M)")
def _() -> Measured:
    page = script("checkpoints/intervals.py")
    m, c = 3600.0, page["STALL_S"]["blocking"]
    tried = [factor * page["young"](c, m) for factor in page["FACTORS"][::2]]
    took = {tau: page["job"]("blocking", tau, m, 0, page["FAILURES"] * m) for tau in tried}
    best = min(took, key=lambda tau: took[tau])
    apart = best / page["young"](c, m)
    return f"{apart:.2f} of it, of factors of 1.41", 0.9 < apart < 1.1


@check("powersgd", "rank 2 on ResNet-18")
def _() -> Measured:
    page = script("powersgd/times.py")
    whole = 4 * sum(math.prod(shape) for shape in page["resnet18"]())
    less = whole / sum(page["sizes"](page["resnet18"](), 2))
    return f"{less:.1f} times", 135 < less < 137


@check("powersgd", "faster than SGD with an optimised all-reduce")
def _() -> Measured:
    page = script("powersgd/times.py")
    tensors, compute_s = page["resnet18"](), 0.1
    gains = []
    for gbps in page["GBPS"][:2]:
        link_s = sum(page["ring_s"](size, gbps) for size in page["sizes"](tensors, 2))
        ddp_s = page["ddp_s"](tensors, compute_s, gbps, page["Buckets"]())
        gains.append(ddp_s / (compute_s + link_s))
    said = " and ".join(f"{gain:.2f}" for gain in gains)
    return f"ResNet-18, 100 ms a step: {said} times at 1 and 10 Gbit/s", min(gains) > 1


@check("scaling_laws", "the slower the link")
def _() -> Measured:
    page = script("scaling_laws/run.py")
    width, rate, steps = 8, "0.03", {}
    with tempfile.TemporaryDirectory() as folder:
        runs = page["KeptRuns"](Path(folder), page["QUIET"])
        curves = {
            h: page["trained"](runs, "final", width, h, rate, 0).history for h in page["EVERY"]
        }
    target = max(min(row["loss"] for row in rows) for rows in curves.values())
    for h, rows in curves.items():
        at, losses = [h * row["round"] for row in rows], [row["loss"] for row in rows]
        steps[h] = page["crossing"](at, losses, target)
    best = {}
    for gbps in (1e4, 0.1):
        best[gbps] = min(steps, key=lambda h: steps[h] * (0.1 + 32 / (h * gbps)))
    return f"H = {best[1e4]} at 10,000 Gbit/s, {best[0.1]} at 0.1", best[1e4] < best[0.1]


@check("flag", "at the authors' m and one iteration")
def _() -> Measured:
    page = script("flag/cosines.py")
    rows = page["gradients"](0)
    found = [page["cosine"](rows[step], 8, 1) for step in (0, 20)]
    return f"cosines of {found[0]:.4f} and {found[1]:.4f}", min(found) > 0.999


@check("compression/econtrol", "with noise and unlike clients its error falls")
def _() -> Measured:
    page = script("compression/econtrol/noise.py")
    ends = [page["distances"]([(2.0**-7, 0.05)], n, 1, 3000)[0] for n in (4, 16)]
    return f"{ends[0]:.4f} and {ends[1]:.4f} of 4 and 16 clients", ends[1] < 0.8 * ends[0]


@check("multi_momentum", "a momentum for each cluster")
def _() -> Measured:
    page = script("multi_momentum/quadratics.py")
    distances = {}
    for name in ("SGD", "beta = 0.9"):
        for case in ("clusters differ", "both"):
            of = page["METHODS"][name], page["distance"], page["CASES"][case]
            distances[name, case] = _nearest(*of, page["LADDER"])
    ours, sgd = ([v for (n, _), v in distances.items() if n == m] for m in ("beta = 0.9", "SGD"))
    said = f"{ours[0]:.1e}, SGD {sgd[0]:.1e}; with noise {ours[1]:.1e}, {sgd[1]:.1e}"
    return said, all(a < b for a, b in zip(ours, sgd, strict=True))


def _nearest(
    make: Callable[[], Any],
    distance: Callable[..., float],
    case: tuple[float, float],
    ladder: list[float],
) -> float:
    """Returns the distance with seed 1 at the rate that is best with seed 0."""
    return distance(make(), min(ladder, key=lambda r: distance(make(), r, *case, 0)), *case, 1)


@check("diloco", "Gbit/s for 50 to 99 %")
def _() -> Measured:
    _, apart = script("diloco/utilisation.py")["compare"](1.0)
    within = sum(abs(steps) <= 1 for steps in apart)
    return f"{within} of {len(apart)} within a step, {apart.count(0)} equal", within >= 49


@check("diloco", "eager updates: Gbit/s")
def _() -> Measured:
    page = script("diloco/utilisation.py")
    pairs = [
        (page["eager_gbps"](model, 100, 4, 0.99), told) for model, told in page["EAGER"].values()
    ]
    times = [ours / published for ours, published in pairs]
    return f"{', '.join(f'{each:.1f}' for each in times)} times as much", min(times) > 1.5


def _sent(*overrides: str) -> float:
    """Returns the bytes that clients sent in a short run of an MLP with 50,890 weights."""
    few = ("data=mnist", "data.num_train=200", "data.num_test=50", "partition=iid", "num_clients=2")
    return float(run(*few, "model=mlp", "target=null", *overrides)["bytes_up"].iloc[-1])


@check("compression", "TernGrad: 2 bits an entry")
def _() -> Measured:
    both = ("num_rounds=1", "strategy.fraction_train=1.0")
    dense, sent = (_sent(*both, f"compressor={c}") for c in ("none", "terngrad"))
    return f"{dense / sent:.1f} times", 15.5 < dense / sent <= 16


@check("compression", "1-bit Adam: less volume")
def _() -> Measured:
    steps, warmup = 13, 2  # the page's share of 23 in 150
    of = ("strategy=onebit_adam", f"num_rounds={steps}", f"evaluate_every={steps}")
    dense, sent = (_sent(*of, f"strategy.rule.warmup={w}") for w in (steps, warmup))
    w = warmup / steps
    by_formula = 1 / (w + (1 - w) / 32)
    said = f"{dense / sent:.2f} times against float32, by the formula {by_formula:.2f}"
    return said, math.isclose(dense / sent, by_formula, rel_tol=0.05)


def _game(overrides: str) -> float:
    """Returns the communications until the error is 1e-12, with seed 1."""
    rows = run("+experiment=proxskip_vip", "seed=1", "data.seed=1", *overrides.split())
    return first(rows, rows["relative_error"] <= 1e-12)


GDA = "strategy=fedavg strategy.fraction_train=1.0 client.local_epochs=null"


@check("proxskip_vip", "with local steps, linear convergence")
def _() -> Measured:
    proxskip = _game("num_rounds=50 strategy=proxskip client.rule.lr=0.5 strategy.rule.p=0.3")
    local = _game(f"num_rounds=50 {GDA} client.rule.lr=0.03 client.local_steps=10")
    said = f"1e-12 after {proxskip:.0f}; local GDA {'not' if local == math.inf else 'too'} in 50"
    return said, proxskip < local == math.inf


@check("proxskip_vip", "fewer communications than GDA: quadratic games")
def _() -> Measured:
    proxskip = _game("num_rounds=50 strategy=proxskip client.rule.lr=0.5 strategy.rule.p=0.3")
    gda = _game(f"num_rounds=50 {GDA} client.rule.lr=1 client.local_steps=1")
    return f"{proxskip:.0f} against {gda:.0f}", proxskip < gda


@check("proxskip_vip", "fewer communications than GDA: robust least squares")
def _() -> Measured:
    squares = "num_rounds=70 data=robust_least_squares"
    proxskip = _game(f"{squares} strategy=proxskip client.rule.lr=0.25 strategy.rule.p=0.6")
    gda = _game(f"{squares} {GDA} client.rule.lr=0.6 client.local_steps=1")
    return f"{proxskip:.0f} against {gda:.0f}", gda < proxskip


@check("savic", "better than local SGD in the same communications: H = 32")
def _() -> Measured:
    common = ("+experiment=savic", "client.local_steps=32", "seed=0")
    local = end(
        run(*common, "strategy=fedavg", "aggregator.weighted=false", "client.rule.lr=0.03"),
        "train_objective",
    )
    ours = {}
    for scaling, rate, alpha in (
        ("oasis", 0.03, 1e-3),
        ("rmsprop", 0.01, 1e-5),
        ("adam", 0.01, 1e-5),
    ):
        chosen = (
            f"strategy.rule.scaling={scaling}",
            f"client.rule.lr={rate}",
            f"strategy.rule.alpha={alpha}",
        )
        ours[scaling] = end(run(*common, "strategy=savic", *chosen), "train_objective")
    said = ", ".join(f"{value:.2f} ({name})" for name, value in ours.items())
    return f"{said} against {local:.2f}", max(ours.values()) < local


@check("momentum", "with all clients, momentum makes FedAvg better")
def _() -> Measured:
    common = ("+experiment=momentum", "partition.alpha=0.1", "strategy.clients=10", "seed=0")
    plain = run(*common, "strategy=fedavg", "aggregator.weighted=false", "client.rule.lr=0.1")
    ours = run(*common, "strategy=fedavg_m", "client.rule.lr=0.3", "strategy.rule.beta=0.6")
    points = 100 * (end(ours, "accuracy") - end(plain, "accuracy"))
    return f"by {points:.1f} points", points > 0


def _of_fedspeed(*overrides: str) -> float:
    """Returns the accuracy of a run of FedSpeed's page, in %."""
    common = ("+experiment=fedspeed", "partition.alpha=0.1", "seed=0")
    return 100 * end(run(*common, *overrides), "accuracy")


FEDSPEED = ("strategy=fedspeed", "client.rule.lr=0.1", "client.rule.rho=0.1")


@check("fedspeed", "above FedAvg")
def _() -> Measured:
    ours = _of_fedspeed(*FEDSPEED)
    plain = _of_fedspeed("strategy=fedavg", "aggregator.weighted=false", "client.rule.lr=0.1")
    return f"{ours:.1f}; {plain:.1f}", ours > plain


@check("fedspeed", "above FedAdam and FedCM")
def _() -> Measured:
    ours = _of_fedspeed(*FEDSPEED)
    adam = _of_fedspeed("strategy=fedadam", "client.rule.lr=0.1", "strategy.rule.eta=0.01")
    cm = _of_fedspeed("strategy=fedavg_m", "client.rule.lr=0.03")
    return f"{ours:.1f}; {adam:.1f}, {cm:.1f}", ours > max(adam, cm)


def _of_fedhyper(*overrides: str) -> Any:
    """Returns the evaluations of a run of FedHyper's page."""
    return run(
        *("data=mnist", "data.num_train=6000", "data.num_test=2000", "partition.alpha=0.5"),
        *("model=mlp", "model.hidden=[32]", "num_clients=100", "fleet=uniform", "seed=0"),
        *("client.batch_size=20", "client.local_epochs=5", *overrides),
    )


@check("fedhyper", "faster than FedAvg")
def _() -> Measured:
    of = ("num_rounds=11", "client.rule.lr=0.01")
    plain, ours = (_of_fedhyper(f"strategy={s}", *of) for s in ("fedavg", "fedhyper_cl"))
    rounds = [first(rows, rows["accuracy"] >= 0.8) for rows in (plain, ours)]
    said = f"CL from 0.01: 80 % after {rounds[1]:.0f} rounds, FedAvg {rounds[0]:.0f}"
    return said, rounds[1] < rounds[0]


@check("fedhyper", "more accurate where the initial rate is a poor one")
def _() -> Measured:
    of = ("num_rounds=30", "client.rule.lr=0.001")
    plain, ours = (_of_fedhyper(f"strategy={s}", *of) for s in ("fedavg", "fedhyper_cl"))
    points = 100 * (end(ours, "accuracy") - end(plain, "accuracy"))
    return f"CL from 0.001: {points:.1f} points", points > 0


@check("fedprox", "mu > 0 is more stable")
def _() -> Measured:
    common = (
        "+experiment=fedprox",
        "data.alpha=1",
        "data.beta=1",
        "seed=0",
        "num_rounds=10",
        "strategy.rule.straggler_fraction=0.9",
    )
    rises = {}
    for name, more in {
        "mu = 1": ("strategy.rule.mu=1",),
        "mu = 0": ("strategy.rule.mu=0",),
        "FedAvg": ("strategy.rule.mu=0", "strategy.rule.drop_stragglers=true"),
    }.items():
        f = run(*common, *more)["train_objective"].dropna()
        rises[name] = float(f.diff().clip(lower=0).sum())
    said = ", ".join(f"{name} {value:.2f}" for name, value in rises.items())
    return f"10 rounds, sum of rises: {said}", rises["mu = 1"] < rises["mu = 0"] < rises["FedAvg"]


def _of_fedau(*overrides: str) -> float:
    """Returns the accuracy of a run of FedAU's page, in %, where participation is independent."""
    common = ("+experiment=fedau", "fleet/availability=bernoulli", "seed=0", "client.rule.lr=0.001")
    return 100 * end(run(*common, *overrides), "accuracy")


@check("fedau", "above the average over those that take part")
def _() -> Measured:
    everyone = ("strategy.fraction_train=1", "strategy.min_train_nodes=1")
    there = _of_fedau("strategy=fedavg", "aggregator.weighted=false", *everyone)
    points = _of_fedau("strategy=fedau") - there
    return f"Bernoulli: {points:.1f} points", points > 0


@check("fedau", "above the average over all")
def _() -> Measured:
    ours = _of_fedau("strategy=fedau")
    everyone = _of_fedau("strategy=fedau", "strategy.rule.cutoff=1", "strategy.rule.eta=10")
    return f"Bernoulli: {ours:.1f} and {everyone:.1f} %", ours > everyone


@check("fedcompass", "paces of a normal law")
def _() -> Measured:
    common = (
        *("+experiment=fedcompass", "num_clients=5", "partition.num_shards_per_partition=5"),
        *("fleet/slowdown@fleet.client_slowdown=normal", "seed=0"),
    )
    steps = ("strategy.rule.min_steps=10", "strategy.rule.max_steps=50", "num_rounds=26")
    everyone = ("strategy.fraction_train=1", "strategy.min_train_nodes=5", "num_rounds=16")
    times = []
    for chosen in (("strategy=fedcompass", *steps), ("strategy=fedavg", *everyone)):
        rows = run(*common, *chosen)
        times.append(float(rows[rows["accuracy"] >= 0.9]["time_s"].min()))
    said = f"5 clients: FedAvg {times[1] / times[0]:.2f} of FedCompass's time to 90 %"
    return said, times[0] < times[1]


@check("favas", "FAVAS is above FedBuff: one in nine fast")
def _() -> Measured:
    page = script("favas/run.py")["COMPARISON"]
    of = ("client.rule.lr=0.1", "time_limit_s=2000", "evaluate_every_s=200")
    favas, fedbuff = (
        100 * end(run(*page.overrides(name, "1/9 fast", "final", 0), *of), "accuracy")
        for name in ("favas", "fedbuff")
    )
    return f"2,000 s: {favas:.1f} % and {fedbuff:.1f}", favas > fedbuff


@check("fedfix", "at the expense of stability: at a rate of FedFix")
def _() -> Measured:
    page = script("fedfix/run.py")["COMPARISON"]
    of = ("client.rule.lr=0.1", "time_limit_s=15")
    fedfix, alone = (
        100 * end(run(*page.overrides(name, "F-80", "final", 0), *of), "accuracy")
        for name in ("fedfix, 0.5 s", "async, eta 1")
    )
    return f"rate 0.1, 15 s: {alone:.1f} %, FedFix {fedfix:.1f}", alone < fedfix - 20


@check("ifca", "better than one model for all")
def _() -> Measured:
    common = (
        *("data=rotated_mnist", "data.num_train=200", "data.num_test=1000", "num_clients=8"),
        *("partition=clusters", "partition.partition_size=100", "partition.test_size=100"),
        *("model=mlp", "model.hidden=[200]", "fleet=uniform", "num_rounds=20", "personal.every=20"),
        *("client.local_epochs=null", "client.local_steps=10", "client.batch_size=null"),
        *("client.rule.lr=0.1", "seed=0", "evaluate_every=1000", "target=null"),
        *("strategy.fraction_train=1.0", "strategy.min_train_nodes=1"),
    )
    ours, one = (run(*common, f"strategy={s}")["personal_accuracy"] for s in ("ifca", "fedavg"))
    ours, one = (100 * float(each.dropna().iloc[-1]) for each in (ours, one))
    return f"8 clients: {ours:.1f} and {one:.1f}", ours > one


@check("large_batch", "LAWA")
def _() -> Measured:
    few = ("client.batch_size=8", "client.rule.lr=0.2", "seed=1", "num_rounds=140")
    rows = run("+experiment=large_batch", *few)
    steps = [first(rows, rows[metric] <= 0.3) for metric in ("latest_loss", "loss")]
    return f"S b = 64: {steps[1]:.0f} steps for {steps[0]:.0f}", steps[1] < steps[0]


@check("zeus", "jobs of the simulator")
def _() -> Measured:
    zeus = runpy.run_path(str(HERE / "zeus" / "run.py"))
    default, job = zeus["measured"]("logistic, digits, SGD", (32, 128, 512), (0.6, 1.0), range(2))
    saved = [100 * (1 - energy) for energy in zeus["compared"](job, default, range(3)).energy]
    return f"{min(saved):.0f} to {max(saved):.0f} % of the energy saved", min(saved) > 0


def main(pages: list[str]) -> int:
    """Runs the checks of these pages, of all if there is none; returns how many do not hold."""
    if unknown := set(pages) - {each.page for each in CHECKS}:
        sys.exit(f"no check is of {', '.join(sorted(unknown))}")
    failed = 0
    for each in CHECKS:
        if pages and each.page not in pages:
            continue
        said, start = each.said, time.process_time()
        now, holds = each.measure()
        failed += not holds
        took = f"{time.process_time() - start:.0f} s of CPU time"
        print(f"{each.page}: {said.claim}\n  published: {said.published}\n  page: {said.ours}")
        print(f"  now: {now}\n  {said.verdict}: {'holds' if holds else 'DOES NOT HOLD'}, {took}")
        sys.stdout.flush()
    print(f"{failed} of the verdicts do not hold" if failed else "all of these verdicts hold")
    return failed


if __name__ == "__main__":
    sys.exit(1 if main(sys.argv[1:]) else 0)
