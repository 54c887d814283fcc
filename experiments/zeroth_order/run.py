"""All runs of a page, one after the other in one process.

    FL_DATA_DIR=... python experiments/zeroth_order/run.py [PAGE [METHOD ...]]

PAGE is experiments/zeroth_order, or experiments/zeroth_order/bytes, of Just One Byte. Runs that are
kept with it are not made again: without its results.parquet all are. What all begin with, a GPT
trained on the source text of Python's library, is in outputs/zeroth_order. Of each method three
rates are tried on examples that nobody trains on, and more, three times as large or small, as long
as the best is at an edge.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NamedTuple

sys.path.append(str(Path(__file__).parents[1]))
sys.path.append(str(Path(__file__).parent))

from tuned import KeptRuns, Trial, ranked

import fl

PAGE, OUT = Path(__file__).resolve().parent, Path("outputs/zeroth_order")
PASSES, ROUNDS, BLOCKS = 2_000, 5, 4
"""Forward passes of a run, the evaluations they are cut into, and blocks of the model."""

MODEL = ("data.window=32", "partition=iid", "model=char_gpt", "model.width=24", "model.layers=1")
TASK = ("data=shakespeare", "data._target_=shakespeare_in_ascii.load", *MODEL)
FLEET = ("fleet=datacenters", "fleet.network=co2-rdma", "fleet.access_bps=1e15", "fleet.jitter=0")
DEVICE = ("fleet.gpus=1", "fleet.utilisation=1", "fleet.gpu_flops=1e9")
QUIET = ("executor=serial", "progress=false", "views=false", "checkpoint=off")
VALIDATION, TUNING, SEEDS, MOST = "validation=0.03", 100, (0, 1, 2), 6


class Method(NamedTuple):
    """How a method is run.

    Attributes:
        overrides: of the command line.
        passes: forward passes that a step is charged for, roughly.
        rates: that are tried first.
        key: of the rate.
    """

    overrides: tuple[str, ...]
    passes: float
    rates: tuple[float, ...]
    key: str = "client.rule.lr"


TWO_POINT = "client/estimator=two_point"
METHODS = {
    "sgd": Method(("client=sgd",), 3, (0.03, 0.1, 0.3)),
    "zo_sgd": Method(("client=sgd", TWO_POINT), 2, (1e-4, 3e-4, 1e-3)),
    "zo_sign": Method(
        ("client=sgd", TWO_POINT, "client.estimator.sign=true"), 2, (1e-4, 3e-4, 1e-3)
    ),
    "zo_momentum": Method(("client=momentum", TWO_POINT), 2, (1e-4, 3e-4, 1e-3)),
    "zo_conservative": Method(("client=conservative", TWO_POINT), 5, (3e-4, 1e-3, 3e-3)),
    "zo_adam": Method(
        ("client=adamw", "client.rule.keep_moments=true", "client.rule.weight_decay=0", TWO_POINT),
        2,
        (3e-4, 1e-3, 3e-3),
    ),
    "forward_gradient": Method(
        ("client=sgd", "client/estimator=forward_gradient"), 3, (1e-4, 3e-4, 1e-3)
    ),
    "zo_block_wise": Method(
        ("client=sgd", "client/estimator=block_wise"), 2 * BLOCKS, (3e-4, 1e-3, 3e-3)
    ),
    "zo_sparse": Method(
        ("client=sgd", TWO_POINT, "client.estimator.density=0.1"), 2, (1e-3, 3e-3, 1e-2)
    ),
}
WORKERS, SAMPLES, STEPS = 4, 30, 50
DATA_PARALLEL = (
    "strategy=data_parallel",
    "strategy.rule.optimizer._target_=fl.strategies.OuterSgd",
    "+strategy.rule.optimizer.momentum=0",
    "+strategy.rule.optimizer.nesterov=false",
)
BYTES = {
    "just_one_byte": Method(
        (
            "strategy=just_one_byte",
            f"strategy.rule.compressor.samples={SAMPLES}",
            "client/estimator=projected",
            f"client.estimator.samples={SAMPLES}",
        ),
        2 * SAMPLES,
        (1e-2, 3e-2, 1e-1),
        "strategy.rule.lr",
    ),
    "all_floats": Method(
        (
            *DATA_PARALLEL,
            "client/estimator=forward_gradient",
            f"client.estimator.samples={SAMPLES}",
        ),
        1 + 2 * SAMPLES,
        (1e-2, 3e-2, 1e-1),
        "strategy.rule.optimizer.lr",
    ),
    "gradients": Method(DATA_PARALLEL, 3, (0.03, 0.1, 0.3), "strategy.rule.optimizer.lr"),
}


def pre_trained() -> Path:
    """Returns the model that all begin with: 2,000 steps of AdamW on another text."""
    path = OUT / "pre-trained.safetensors"
    if not path.exists():
        run = fl.run(
            *("data=stdlib", *MODEL, *FLEET, *DEVICE, *QUIET, "num_clients=1", "client=adamw"),
            *("client.rule.lr=0.003", "client.rule.keep_moments=true", "client.batch_size=32"),
            *("client.local_epochs=null", "client.local_steps=200", "num_rounds=10"),
            *("evaluate_every=10", f"seed={TUNING}", "target=null"),
            directory=OUT / "pre-trained",
        )
        assert run.directory is not None
        (run.directory / "model.safetensors").rename(path)
    return path


def given(method: Method) -> tuple[str, ...]:
    """Returns the overrides of a method's runs, but for the rate and the seed."""
    target = ("target.metric=loss", "target.value=2.6", "target.mode=min")
    common = (*TASK, "client.batch_size=16", *target)
    if method in BYTES.values():
        more = ("client=gradient", f"num_clients={WORKERS}", f"num_rounds={STEPS}")
        return (*common, *more, *method.overrides, f"evaluate_every={STEPS // ROUNDS}")
    steps = int(PASSES / ROUNDS / method.passes)
    more = ("num_clients=1", "client.local_epochs=null", f"client.local_steps={steps}")
    return (*common, *method.overrides, *more, f"num_rounds={ROUNDS}", "evaluate_every=1")


def run_method(kept: KeptRuns, name: str) -> None:
    """Tunes a method's rate, and runs the best one."""
    method = (METHODS | BYTES)[name]

    def trial(part: str, seed: int, rate: float) -> Trial:
        validation = (VALIDATION,) if part == "tune" else ()
        return kept.run(
            *(name, part, *given(method), *validation, f"initial_model={pre_trained()}"),
            *(f"seed={seed}", f"{method.key}={rate:g}"),
        )

    rates = sorted(method.rates)
    tuned = {rate: trial("tune", TUNING, rate) for rate in rates}
    while len(tuned) < MOST:
        best = _best(tuned, method.key)
        if best not in (min(tuned), max(tuned)):
            break
        further = best * 3 if best == max(tuned) else best / 3
        further = float(f"{further:.0e}")
        tuned[further] = trial("tune", TUNING, further)
    for seed in SEEDS:
        trial("final", seed, _best(tuned, method.key))


def _best(tuned: dict[float, Trial], key: str) -> float:
    return float(ranked(list(tuned.values()), "num_clients", "")[0][1][0].given[key])


PAGES = {PAGE: METHODS, PAGE / "bytes": BYTES}


def main(page: Path = PAGE, *names: str) -> None:
    """Runs methods of a page, all if none is named."""
    OUT.mkdir(parents=True, exist_ok=True)
    kept = KeptRuns(page, (*FLEET, *DEVICE, *QUIET))
    for name in names or PAGES[page]:
        run_method(kept, name)
    if not names:
        kept.prune()


if __name__ == "__main__":
    main(*(Path(each).resolve() for each in sys.argv[1:2]), *sys.argv[2:])
