"""Client updates on a GPU: together, one by one, and a bare loop; and how far the CPU's agree.

    python benchmarks/gpu.py [--quick] [--device cuda] [--out FILE]

Five models, each trained by clients of 64 examples for two steps of 32, SGD. On the device:

    together    programs of as many clients as the device holds at a time (`fl.clients.app.batched`)
    one by one  the same clients, each by itself
    loop        a bare PyTorch loop over the clients, with data and model on the device

They take turns; a rate is the median. Then the same clients on the CPU: the largest difference of
a weight, over the largest change that training made, with TF32 switched off, where at most 1e-3 is
allowed; and the most memory the device had in use. Last, 10,000 clients of logistic regression
as one wave. The whole takes under ten minutes on a device that is worth it; `--device cpu` tries
the script.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import report

BATCH, EXAMPLES, STEPS, LR = 32, 64, 2, 0.05
TOLERANCE = 1e-3
MANY = 10_000


@dataclass(frozen=True)
class Workload:
    """A model, what it takes, and how many clients train it in a turn."""

    shape: tuple[int, ...]
    classes: int
    clients: int
    tokens: bool = False


WORKLOADS = {
    "logistic": Workload((60,), 10, 1000),
    "mlp": Workload((1, 28, 28), 10, 500),
    "cnn": Workload((1, 28, 28), 10, 64),
    "resnet8": Workload((3, 32, 32), 10, 64),
    "char_gpt": Workload((64,), 90, 64, tokens=True),
}


def make_model(name: str) -> Any:
    """Returns a workload's module, with the same initial values every time."""
    import torch

    from fl.models import MLP, CharGPT, LeafCNN, LogisticRegression, ResNet8

    torch.manual_seed(0)
    made = WORKLOADS[name]
    kinds: dict[str, Callable[..., Any]] = {
        "logistic": LogisticRegression,
        "mlp": MLP,
        "cnn": LeafCNN,
        "resnet8": ResNet8,
        "char_gpt": CharGPT,
    }
    return kinds[name](made.shape, made.classes).train()


def make_data(name: str, clients: int) -> Any:
    """Returns random examples, so many for each client."""
    import numpy as np

    from fl.data import Examples, FederatedData, Partitions

    made, rng = WORKLOADS[name], np.random.default_rng(0)
    n = clients * EXAMPLES
    x: Any
    if made.tokens:
        x = rng.integers(0, made.classes, (n, *made.shape))
        y = rng.integers(0, made.classes, (n, *made.shape))
    else:
        x = rng.standard_normal((n, *made.shape), dtype=np.float32)
        y = rng.integers(0, made.classes, n)
    return FederatedData(
        name="random",
        train=Examples(x, y),
        test=Examples(x[:1], y[:1]),
        partitions=Partitions.contiguous([EXAMPLES] * clients),
        num_classes=made.classes,
        input_shape=made.shape,
        task="next-token" if made.tokens else "classification",
    )


def make_trainer(name: str, data: Any, device: str) -> tuple[Any, list[Any]]:
    """Returns what trains clients on a device, and what each client is to do."""
    import numpy as np
    import torch

    from fl.clients import Sgd
    from fl.clients.app.trainer import Trainer
    from fl.clients.app.training import Training
    from fl.vectors.layout import Layout

    model, rule = make_model(name), Sgd(lr=LR)
    layout = Layout.of(model)
    row = torch.nn.utils.parameters_to_vector(model.parameters()).detach().numpy()
    trainer = Trainer(
        model.to(device),
        layout,
        data,
        rule,
        shuffle=True,
        drop_last=False,
        batching="on",
        device=torch.device(device),
        has_mods=False,
        local=None,
        estimator=None,
        contact=None,
        train=True,
    )
    return trainer, [
        Training(
            seed=0,
            client=i,
            message_id=f"{i}.0",
            rows=np.asarray(data.partitions[i]),
            row=row,
            carried={},
            server={},
            memory=None,
            scalars=rule.scalars({"server-round": 1}),
            steps=STEPS,
            batch_size=BATCH,
            deadline_s=None,
        )
        for i in range(data.num_partitions)
    ]


def together(trainer: Any, trainings: list[Any]) -> Any:
    """Returns the clients' models, shape (n, d), trained in programs."""
    import torch

    rows: list[Any] = [None] * len(trainings)
    for places, trained in trainer.together(trainings):
        for place, row in zip(places, trained.rows, strict=True):
            rows[place] = row
    return torch.stack(rows)


def alone(trainer: Any, trainings: list[Any]) -> Any:
    """Returns the clients' models, shape (n, d), trained one after the other."""
    import torch

    return torch.cat([trainer.alone(training).rows for training in trainings])


def bare_loop(name: str, data: Any, device: str, clients: int) -> Callable[[], None]:
    """Returns a loop over clients as anybody would write it."""
    import torch
    from torch.nn.utils import parameters_to_vector, vector_to_parameters

    from fl.models import per_example_loss

    x, y = (t.to(device) for t in data.tensors(data.train, slice(None)))
    model = make_model(name).to(device)
    parameters = list(model.parameters())
    w = parameters_to_vector(parameters).detach()
    optimizer: Any = torch.optim.SGD(parameters, lr=LR)

    def run() -> None:
        total = torch.zeros_like(w)
        for i in range(clients):
            vector_to_parameters(w.clone(), parameters)
            order: Any = i * EXAMPLES + torch.randperm(EXAMPLES, device=device)
            for batch in order.split(BATCH):
                optimizer.zero_grad()
                loss: Any = per_example_loss(model(x[batch]), y[batch]).mean()
                loss.backward()
                optimizer.step()
            with torch.no_grad():
                total += parameters_to_vector(parameters)
        total.sum().item()  # waits for the device

    return run


def rate(run: Callable[[], object], clients: int, turns: int) -> list[float]:
    """Returns updates per second of each turn; the first run is for caches."""
    run()
    found = []
    for _ in range(turns):
        began = report.host_s()
        run()
        found.append(clients / (report.host_s() - began))
    return found


def peak_bytes(device: str, run: Callable[[], object]) -> int:
    """Returns the most memory of the device that a run has in use; 0 of a CPU."""
    import torch

    if not device.startswith("cuda"):
        return 0
    torch.cuda.reset_peak_memory_stats()
    run()
    return int(torch.cuda.max_memory_allocated())


def disagreement(name: str, data: Any, device: str) -> float:
    """Returns max |w - w_cpu| / max |w_cpu - w_0|, over weights and a few clients."""
    import numpy as np

    models = []
    for where in (device, "cpu"):
        trainer, trainings = make_trainer(name, data, where)
        models.append(together(trainer, trainings[:4]).double().numpy())
    change = np.abs(models[1] - trainings[0].row).max()
    return float(np.abs(models[0] - models[1]).max() / change)


def measure(name: str, device: str, share: float, turns: int) -> dict[str, Any]:
    """Returns the row of a workload."""
    clients = max(4, int(WORKLOADS[name].clients * share))
    few = max(4, clients // 8)  # one by one takes long
    data = make_data(name, clients)
    trainer, trainings = make_trainer(name, data, device)
    ways: dict[str, tuple[Callable[[], object], int]] = {
        "together": (lambda: together(trainer, trainings), clients),
        "one by one": (lambda: alone(trainer, trainings[:few]), few),
        "loop": (bare_loop(name, data, device, few), few),
    }
    rates = {way: statistics.median(rate(*of, turns)) for way, of in ways.items()}
    return {
        "model": name,
        "clients": clients,
        **rates,
        "peak_bytes": peak_bytes(device, ways["together"][0]),
        "disagreement": disagreement(name, data, device),
    }


def main() -> None:
    """Measures all models and publishes the table."""
    parser = report.parser("gpu", __doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=list(WORKLOADS))
    settings = parser.parse_args()
    import torch

    if settings.device.startswith("cuda") and not torch.cuda.is_available():
        print(f"there is no device {settings.device!r}; --device cpu tries the script")
        return
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    about = report.machine()
    share, turns = (0.05, 1) if settings.quick else (1.0, 5)
    rows = [measure(name, settings.device, share, turns) for name in settings.workloads]
    many = int(MANY * share)
    trainer, trainings = make_trainer("logistic", make_data("logistic", many), settings.device)
    of_many = statistics.median(rate(lambda: together(trainer, trainings), many, turns))
    report.table(
        f"client updates per second on {settings.device}",
        ("model", "together", "one by one", "loop", "together / loop", "peak MB", "from the CPU's"),
        [
            (
                row["model"],
                f"{row['together']:.0f}",
                f"{row['one by one']:.0f}",
                f"{row['loop']:.0f}",
                f"{row['together'] / row['loop']:.2f}",
                f"{row['peak_bytes'] / 1e6:.0f}",
                f"{row['disagreement']:.1e}" + " (!)" * (row["disagreement"] > TOLERANCE),
            )
            for row in rows
        ],
    )
    print(f"\n{many:,} clients of logistic regression as one wave: {of_many:.0f} updates/s")
    rows.append({"model": "logistic", "clients": many, "together": of_many})
    report.publish(settings.out, rows, settings, about)


if __name__ == "__main__":
    main()
