"""A picture of which classes a model takes for which."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fl.reports.plots import drawing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MOST_TICKS = 20
_MOST_NUMBERS = 12  # classes whose counts can be read


def picture(counts: NDArray[np.int64], path: Path | None = None) -> Figure:
    """Draws a confusion matrix: the shade is the share of a row, the number the count.

    Args:
        counts: shape (C, C); row c is of the examples of class c.
        path: PNG to write, replaced as a whole.
    """
    C = len(counts)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = 3.4 + min(0.32 * C, 5.0)
    with drawing(side + 1.2, side, path) as figure:
        axes = figure.subplots()
        image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
        axes.grid(False)
        ticks = range(0, C, -(-C // _MOST_TICKS))
        axes.set_xticks(ticks)
        axes.set_yticks(ticks)
        axes.set(xlabel="taken for class", ylabel="class")
        axes.set_title("held-out examples of the final model", loc="left")
        if C <= _MOST_NUMBERS:
            for true, taken in np.argwhere(counts > 0).tolist():
                ink = "white" if shares[true, taken] > 0.5 else "black"
                axes.text(taken, true, f"{counts[true, taken]}", color=ink, ha="center",
                          va="center", fontsize=7)  # fmt: skip
        figure.colorbar(image, ax=axes, label="share of the class")
    return figure
