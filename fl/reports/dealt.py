"""A picture of who has which examples."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fl.reports.plots import PALETTE, drawing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MOST_TICKS = 20


def picture(
    counts: NDArray[np.int64], sizes: NDArray[np.int64], title: str, path: Path | None = None
) -> Figure:
    """Draws which part of a class each client has, and below how many examples.

    Args:
        counts: of training examples, shape (P, C); with C = 1 there are no classes to show.
        sizes: training examples of each client, shape (P,).
        title: of the picture.
        path: PNG to write, replaced as a whole.
    """
    from matplotlib.ticker import MaxNLocator

    P, C = counts.shape
    classes = C > 1
    height = 2.6 + (min(0.25 * C, 4.0) if classes else 0.0)
    with drawing(8.5, height, path) as figure:
        ratios = [max(height - 2.6, 0.5), 1.6] if classes else [1.0]
        axes: list[Axes] = [*np.ravel(figure.subplots(len(ratios), height_ratios=ratios))]
        if classes:
            top = axes[0]
            shares = counts / np.maximum(counts.sum(axis=0), 1)
            image = top.imshow(shares.T, aspect="auto", cmap="Blues", interpolation="nearest")
            top.grid(False)
            top.set(ylabel="class", xticks=[])
            top.set_yticks(range(0, C, -(-C // _MOST_TICKS)))
            figure.colorbar(image, ax=axes, label="share of the class")
        low = axes[-1]
        low.bar(range(P), sizes, width=1.0, color=PALETTE[0])
        low.set(xlabel="client", ylabel="examples", xlim=(-0.5, P - 0.5))
        low.xaxis.set_major_locator(MaxNLocator(integer=True))  # there is no client 2.5
        axes[0].set_title(title, loc="left")
    return figure
