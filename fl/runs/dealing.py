"""`fl partition KEY=VALUE ...`: who would have which examples in a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fl.data import FederatedData
from fl.errors import ConfigError
from fl.runs import usage
from fl.runs.command_parser import CommandParser
from fl.runs.configuration import check_values, take_away
from fl.runs.python import composed


def main(words: Sequence[str]) -> None:
    """Says what the partition of a run is like, and draws it.

    Raises:
        ConfigError: the run cannot be.
    """
    parser = CommandParser(
        prog="fl partition",
        description="Says how the examples of a run are dealt to its clients, and draws it: a "
        "column for each client, a row for each class. Nothing is trained.",
    )
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="as after fl")
    parser.add_argument("--config-dir", "-cd", metavar="DIR", help="configuration of your own")
    parser.add_argument(
        "--file", type=Path, default=Path("partition.png"), help="of the picture: %(default)s"
    )
    given = parser.parse_args(words)
    if (answer := usage.answer(given.overrides)) is not None:
        print(answer)
        return
    place = given.config_dir
    path = () if place is None else (f"file://{Path(place).absolute()}",)
    from fl.reports import dealt  # heavy, and so is what follows
    from fl.runs.build import prepare
    from fl.runs.experiment import Experiment

    with composed(given.overrides, path=path) as config:
        asked = check_values(config)
        take_away(config, asked)
        prepared = prepare(config, asked)
    if not isinstance(prepared, Experiment) or prepared.tasks:
        raise ConfigError(
            "fl partition shows the data of one learning task: leave out app or tasks"
        )
    counts = class_counts(prepared.data)
    print("\n".join(lines(prepared.data, counts)))
    try:
        dealt.picture(
            counts,
            prepared.data.partitions.sizes,
            f"{prepared.data.name}: who has what",
            given.file,
        )
    except OSError as error:
        raise ConfigError(f"{given.file} cannot be written: {error.strerror}") from error
    print(f"{given.file} shows it")


def class_counts(data: FederatedData) -> NDArray[np.int64]:
    """Returns the training examples of each partition by class, shape (P, C).

    An example counts for each label that it has. Where examples have neither classes nor labels,
    C is 1 and counts are those of all.
    """
    parts = [data.partitions[p] for p in range(data.num_partitions)]
    if data.task == "multi-label":
        return np.stack([data.train.y[rows].sum(axis=0) for rows in parts]).astype(np.int64)
    if data.task != "classification":
        return data.partitions.sizes[:, None]
    C = data.num_classes
    return np.stack([np.bincount(data.train.y[rows], minlength=C) for rows in parts])


def lines(data: FederatedData, counts: NDArray[np.int64]) -> list[str]:
    """Returns in words what a partition is like.

    Args:
        data: that are dealt.
        counts: of `class_counts`.
    """
    sizes, each = data.partitions.sizes, counts.sum(axis=1)
    told = [
        f"{data.num_partitions} clients have {sizes.sum()} examples of {data.name}: "
        f"{sizes.min()} to {sizes.max()}, median {np.median(sizes):g}"
    ]
    if counts.shape[1] > 1:
        of_each = (counts > 0).sum(axis=1)
        shares = counts / np.maximum(each[:, None], 1)
        distance = np.abs(shares - counts.sum(axis=0) / each.sum()).sum(axis=1)[each > 0] / 2
        what = "labels" if data.task == "multi-label" else "classes"
        told += [
            f"a client has {of_each.min()} to {of_each.max()} of {counts.shape[1]} {what}, median "
            f"{np.median(of_each):g}",
            f"its {what} are {distance.mean():.2f} from those of all data (total variation, 0 to "
            "1, mean over clients)",
        ]
    own = data.test_partitions
    held_out = f"{own.sizes.min()} to {own.sizes.max()} of its own" if own else "none of its own"
    return [*told, f"held out are {len(data.test)} examples for all, and of a client {held_out}"]
