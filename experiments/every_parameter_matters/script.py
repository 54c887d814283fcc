"""The training loop of the authors' script, to find out what its numbers come from.

    FL_DATA_DIR=... python experiments/every_parameter_matters/script.py 1455666777 --masked

Written anew in plain PyTorch by WeightsPruning/main_fed_Pweight_AvgAll.py of
hanhanAnderson/FL_Converge, read at ec596f0, with two of its habits, each of which an option mends:

- clients of types 6 and 7 begin with the part of type 5, and are cut to their own when they have
  trained (`--own-start`: they begin with their own);
- weights that a client lacks begin at 0 and are trained (`--masked`: they stay 0).

With both it is the rule. The ten clients of a round train side by side. Prints the mean accuracy of
the last 10 rounds, in %.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from torch import Tensor

from fl.data import load_mnist

LACKS = ((), (2,), (1,), (0,), (1, 2), (0, 2), (0, 1))  # quarters, by type from 1
CLIENTS, EPOCHS, BATCH, LR, MOMENTUM = 100, 5, 10, 0.01, 0.5


def images() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns inputs and classes, to train on and to test on."""
    source = load_mnist()

    def inputs(x: np.ndarray) -> Tensor:
        flat = torch.from_numpy(x.reshape(len(x), -1).astype(np.float32))
        return (flat / 255 - 0.1307) / 0.3081

    def classes(y: np.ndarray) -> Tensor:
        return torch.from_numpy(y.astype(np.int64))

    train, test = source.train, source.test
    return inputs(train.x), classes(train.y), inputs(test.x), classes(test.y)


def layer(outputs: int, inputs: int, rng: torch.Generator) -> list[Tensor]:
    """Returns weight and bias as PyTorch draws them."""
    bound = inputs**-0.5
    shapes = ((outputs, inputs), (outputs,))
    return [(torch.rand(shape, generator=rng) * 2 - 1) * bound for shape in shapes]


def parts(w: Tensor, types: list[int]) -> Tensor:
    """Returns which first-layer weights clients of some types have, shape (n, 200, 784)."""
    quarter = 4 * np.argsort(w.reshape(-1).numpy(), kind="stable") // w.numel()
    has = np.stack([~np.isin(quarter, LACKS[kind - 1]) for kind in types])
    return torch.from_numpy(has).view(len(types), *w.shape).float()


def accuracies(mix: str, rounds: int, seed: int, *, own_start: bool, masked: bool) -> list[float]:
    """Returns the server's accuracy after each round, in %."""
    x, y, x_test, y_test = images()
    torch_rng, rng = torch.Generator().manual_seed(seed), np.random.default_rng(seed)
    model = [*layer(200, 784, torch_rng), *layer(10, 200, torch_rng)]
    data = rng.permutation(len(x)).reshape(CLIENTS, -1)
    types, found = [int(digit) for digit in mix], []
    starts = types if own_start else [5 if kind > 5 else kind for kind in types]
    for _ in range(rounds):
        has = parts(model[0], types)
        W, b, V, c = (p.expand(len(types), *p.shape).clone() for p in model)
        W *= parts(model[0], starts)
        clients = rng.choice(CLIENTS, len(types), replace=False)
        momenta = [torch.zeros_like(p) for p in (W, b, V, c)]
        for _ in range(EPOCHS):
            order = np.stack([rng.permutation(data[client]) for client in clients])
            for step in range(0, order.shape[1], BATCH):
                rows = torch.from_numpy(order[:, step : step + BATCH])
                inputs, targets = x[rows], y[rows]
                h = torch.baddbmm(b[:, None], inputs, W.mT)
                kept = (torch.rand(h.shape, generator=torch_rng) < 0.5).float() * 2  # dropout
                a = torch.relu(h * kept)
                g = torch.baddbmm(c[:, None], a, V.mT).softmax(-1)
                g.scatter_add_(-1, targets[..., None], -torch.ones_like(g[..., :1]))
                g /= BATCH
                g_h = (g @ V) * kept * (a > 0)
                gradients = (g_h.mT @ inputs, g_h.sum(1), g.mT @ a, g.sum(1))
                for p, m, gradient in zip((W, b, V, c), momenta, gradients, strict=True):
                    m.mul_(MOMENTUM).add_(gradient)
                    p.sub_(LR * (m * has if masked and p is W else m))
        covered = has.sum(0)
        mean = (W * has).sum(0) / covered.clamp(min=1)
        model = [torch.where(covered > 0, mean, 0), b.mean(0), V.mean(0), c.mean(0)]
        logits = torch.relu(x_test @ model[0].T + model[1]) @ model[2].T + model[3]
        found.append(100 * float((logits.argmax(1) == y_test).float().mean()))
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("mix")
    parser.add_argument("--own-start", action="store_true")
    parser.add_argument("--masked", action="store_true")
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    last = accuracies(
        asked.mix, asked.rounds, asked.seed, own_start=asked.own_start, masked=asked.masked
    )
    print(f"{np.mean(last[-10:]):.2f}")
