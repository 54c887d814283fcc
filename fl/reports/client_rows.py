"""What every client has at an evaluation of what each would use."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

ACCURACY_EDGES = tuple(k / 20 for k in range(21))
"""Edges of the bins in which clients are counted by accuracy."""


class ClientRow(NamedTuple):
    """One client's result.

    Attributes:
        client: index in the fleet.
        examples: how many it was evaluated on.
        models: loss and accuracy of each model, by its name.
    """

    client: int
    examples: int
    models: Mapping[str, tuple[float, float]]


class ClientRows:
    """The rows of the last evaluation, and a file with those of all.

    Args:
        path: of a CSV that is begun anew; None keeps the last evaluation's only.
    """

    def __init__(self, path: Path | None) -> None:
        self.latest: Sequence[ClientRow] = ()
        self._path = path
        self._begun = False

    def add(self, server_round: int, time_s: float, rows: Sequence[ClientRow]) -> None:
        """Adds an evaluation.

        Args:
            server_round: whose model the server had.
            time_s: virtual time, s.
            rows: of its clients, all with the same models.
        """
        self.latest = rows
        if self._path is None or not rows:
            return
        names = list(rows[0].models)
        with self._path.open("a" if self._begun else "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            if not self._begun:
                columns = [f"{name}_{what}" for name in names for what in ("loss", "accuracy")]
                writer.writerow(["round", "time_s", "client", "examples", *columns])
            for row in rows:
                values = [value for name in names for value in row.models[name]]
                writer.writerow([server_round, time_s, row.client, row.examples, *values])
        self._begun = True
