"""Simulated time of a step, a checkpoint and a recovery, and of 200 steps at four rates of loss.

A larger character GPT than convergence.py trains, through `strategy=pipeline` with
`client.train=false`: machines take their time and send their bytes, and train nothing. Devices are
as fast as makes the ratio of a stage's forward pass to its transfer that of the authors' table
(0.055 s a layer and sample). How many steps are taken again, and how many stages recovered, comes
of the draws of convergence.py. Prints the tables of README.md.

    FL_DATA_DIR=... python experiments/checkfree/times.py
"""

from __future__ import annotations

from hydra import compose, initialize_config_module

from fl import simulate
from fl.randomness import uniform
from fl.runs.build import build
from fl.runs.experiment import app_of
from fl.runs.run import serve

STAGES, STEPS, SHORT = 7, 200, 6
SETTING = [
    "strategy=pipeline",
    f"strategy.num_stages={STAGES}",
    "strategy.ends=together",
    "strategy.micro_batches=4",
    "strategy.steps=1",
    "strategy.rule.optimizer.beta2=0.999",
    "model=char_gpt",
    "model.width=128",
    "model.layers=6",
    "data=shakespeare",
    "data.window=128",
    "partition=iid",
    f"num_clients={STAGES}",
    "client.batch_size=8",
    "client.train=false",
    "fleet.gpus=1",
    "fleet.gpu_flops=14e9",
    "fleet.jitter=0",
    "executor=serial",
    f"num_rounds={SHORT}",
    "evaluate_every=1000",
    "progress=false",
]
METHODS = {
    "checkpoint every 10": ["strategy/recovery=checkpoint", "strategy.rule.recovery.every=1000"],
    "redundant": ["strategy/recovery=redundant"],
    "checkfree": ["strategy/recovery=checkfree"],
    "checkfree_plus": ["strategy/recovery=checkfree_plus"],
}


def seconds(*overrides: str) -> float:
    """Returns the simulated time of a short run, s."""
    with initialize_config_module("fl.conf", version_base=None):
        config = compose("config", overrides=[*SETTING, *overrides])
    experiment = build(config)

    def server(grid, context, recorder):  # type: ignore[no-untyped-def]
        serve(experiment, config, grid, recorder)
        took.append(grid.clock.now())

    took: list[float] = []
    simulate(server, app_of(experiment), experiment.fleet, executor="serial", progress=False)
    return took[0]


def events(seed: int, rate: float, every: int | None) -> tuple[int, int]:
    """Returns how many steps are tried for 200, and before how many of them stages are lost."""
    done = tried = lost = saved = 0
    while done < STEPS:
        tried += 1
        struck = [i for i in range(1, STAGES) if uniform(seed, "lost stage", i, tried) < rate]
        if tried > 1 and struck:
            lost += 1
            if every:
                done = saved
        done += 1
        if every and done % every == 0:
            saved = done
    return tried, lost


def main() -> None:
    """Measures, and prints the tables."""
    print("| recovery | step, s | checkpoint, s | recovery, s |\n|---|---:|---:|---:|")
    took = {}
    for name, own in METHODS.items():
        step = seconds(*own) / SHORT
        save = 0.0
        if "every" in name:
            every_step = [*own[:1], "strategy.rule.recovery.every=1"]
            save = seconds(*every_step) / SHORT - step
        before = [*own[:1]] if not save else every_step
        struck = seconds(*before, "strategy.drop=0.05")
        calm = seconds(*before)
        tried = sum(
            any(uniform(0, "lost stage", i, t) < 0.05 for i in range(1, STAGES))
            for t in range(2, SHORT + 1)
        )
        took[name] = step, save, (struck - calm) / max(1, tried)
        print(f"| {name} | " + " | ".join(f"{x:.2f}" for x in took[name]) + " |", flush=True)
    rates = [0.001, 0.002, 0.004, 0.01]
    print("\n| recovery | " + " | ".join(map(str, rates)) + " |\n|---|" + "---:|" * len(rates))
    for name, (step, save, recover) in took.items():
        for every in (10, 50) if save else (None,):
            cells = []
            for rate in rates:
                total = []
                for seed in (0, 1, 2):
                    tried, lost = events(seed, rate, every)
                    saves = tried // every if every else 0
                    total.append(tried * step + saves * save + lost * recover)
                cells.append(f"{sum(total) / len(total):.0f}")
            label = f"checkpoint every {every}" if every else name
            print(f"| {label} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
