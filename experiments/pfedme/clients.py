"""The clients of pFedMe's MNIST, as arrays.

    FL_DATA_DIR=... python experiments/pfedme/clients.py FILE.npz

Rules of the authors' script (CharlieDinh/pFedMe, data/Mnist/generate_niid_20users.py): 20 clients,
client u with digits u and u + 1 modulo 10, pixels standardised each by itself over all 70,000
images, three quarters of each client's to train on. Sizes are a chain of draws, so that the first
clients have most; by a slip of that script they are drawn for digits 0 and 1 alone, 20 each.
"""

from __future__ import annotations

import random
import sys

import numpy as np

from fl.data import load_mnist

USERS = 20
DIGITS = (0, 1)  # whose images are chopped


def sizes(totals: list[int]) -> list[int]:
    """Returns how many images each user has of its first digit, its second, and so on."""
    rng = np.random.RandomState(1)  # the authors' draws
    chopped = []
    for left in totals:
        parts = []
        for _ in range(USERS - 1):
            parts.append(int(rng.randint(left // (USERS + 1), left // 2)))
            left -= parts[-1]
        chopped.append([*parts, left])
    return [n for pair in zip(*chopped, strict=True) for n in pair]


def main(path: str) -> None:
    """Writes the arrays that `data=arrays` takes."""
    source = load_mnist()
    pixels = np.concatenate([source.train.x, source.test.x]).reshape(70_000, -1).astype(np.float32)
    y = np.concatenate([source.train.y, source.test.y])
    pixels = (pixels - pixels.mean(axis=0)) / (pixels.std(axis=0) + np.float32(0.001))
    of = [np.flatnonzero(y == digit) for digit in range(10)]
    used, shuffle = [0] * 10, random.Random(1).shuffle
    parts: dict[str, list[np.ndarray]] = {"": [], "_test": []}
    count = iter(sizes([len(of[digit]) for digit in DIGITS]))
    for user in range(USERS):
        own: list[int] = []
        for digit in (user % 10, (user + 1) % 10):
            n = next(count)
            if used[digit] + n < len(of[digit]):
                own += of[digit][used[digit] : used[digit] + n].tolist()
                used[digit] += n
        shuffle(own)
        cut = int(0.75 * len(own))
        parts[""].append(np.array(own[:cut]))
        parts["_test"].append(np.array(own[cut:]))
    arrays = {}
    for end, rows in parts.items():
        every = np.concatenate(rows)
        arrays[f"x{end}"], arrays[f"y{end}"] = pixels[every], y[every]
        arrays[f"client{end}"] = np.repeat(np.arange(USERS), [len(own) for own in rows])
    print("images of each client:", [len(own) for own in parts[""]])
    np.savez(path, **arrays)


if __name__ == "__main__":
    main(sys.argv[1])
