"""Learnt convolutions over the numbers of a model, which make it smaller and larger.

FedConv (MobiSys 2024), by the authors' code, lemingshen/FedConv.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fl.submodels.submodel import SubModel
from fl.vectors.layout import Entry, Layout


class Filter(NamedTuple):
    """Makes another tensor of each, by a convolution over outputs and inputs.

    A weight of shape (m, n, ...) is P images of m x n, one for each place of a kernel; others have
    P = 1, and a vector is one row.

    Attributes:
        a, b: of the pointwise convolution, shape (P, 1, 1).
        v, g: direction and length of the kernel, shape (P, k_m, k_n) and (P, 1, 1).
    """

    a: Tensor
    b: Tensor
    v: Tensor
    g: Tensor

    def __call__(self, x: Tensor, *, skip: bool, transposed: bool) -> Tensor:
        """Returns K * (a x + b [+ x]) with K = g v / |v|, of images of shape (P, m, n).

        Args:
            x: the images.
            skip: add x.
            transposed: by the transposed convolution, which makes them larger.
        """
        y = self.a * x + self.b
        if skip:
            y = y + x
        K = self.g * self.v / self.v.norm(dim=(1, 2), keepdim=True)
        convolution = F.conv_transpose2d if transposed else F.conv2d
        return convolution(y[None], K[:, None], groups=len(K))[0]


Filters = Mapping[str, Filter]
"""Of every tensor that clients train, by its name."""


@dataclass(frozen=True)
class Resizing:
    """What filters make of a model: one of the shapes of a part, and the other way round.

    What nobody trains, as statistics of normalisation, is cut out, or put in its place.

    Attributes:
        layout: of the model, with what is trained.
        part: has the smaller shapes.
        positive_slope: p of phi(v) = p v if v > 0, else q v, which follows each filter.
        negative_slope: q.
    """

    layout: Layout
    part: SubModel
    positive_slope: float
    negative_slope: float

    def drawn(self, rng: np.random.Generator) -> dict[str, Filter]:
        """Returns filters as PyTorch draws convolutions.

        Numbers are uniform in [-1 / sqrt(k), 1 / sqrt(k)], with k those of a kernel.
        """

        def uniform(*shape: int) -> Tensor:
            bound = 1 / math.sqrt(math.prod(shape[1:]))
            return torch.from_numpy(rng.uniform(-bound, bound, shape).astype(np.float32))

        filters = {}
        for large, small in zip(self.layout.floats, self.part.layout.floats, strict=True):
            if large.kind != "trainable":
                continue
            (m, n), (m_s, n_s) = _sides(large), _sides(small)
            P = large.size // (m * n)
            v = uniform(P, m - m_s + 1, n - n_s + 1)
            g = v.norm(dim=(1, 2), keepdim=True)
            filters[large.name] = Filter(uniform(P, 1, 1), uniform(P, 1, 1), v, g)
        return filters

    def small(self, F_s: Filters, w: Tensor) -> Tensor:
        """Returns F_s(w), shape (d_s,), of a model of shape (d,); differentiable in the filters."""
        cut = w[torch.from_numpy(self.part.positions)]
        return self._mapped(F_s, w, self.layout, cut, self.part.layout, transposed=False)

    def large(self, G: Filters, y: Tensor) -> Tensor:
        """Returns G(y), shape (d,), of a smaller model of shape (d_s,); differentiable likewise."""
        put = torch.zeros(self.layout.size)
        put[torch.from_numpy(self.part.positions)] = y
        return self._mapped(G, y, self.part.layout, put, self.layout, transposed=True)

    def _mapped(
        self,
        filters: Filters,
        x: Tensor,
        of: Layout,
        others: Tensor,
        into: Layout,
        *,
        transposed: bool,
    ) -> Tensor:
        """Returns a row of the layout `into`: filtered entries of `x`, and `others`' else."""
        row = []
        for entry, old, new in zip(self.layout.floats, of.floats, into.floats, strict=True):
            filter = filters.get(entry.tied_to or entry.name)
            if filter is None:
                row.append(others[new.offset : new.offset + new.size])
                continue
            image = x[old.offset : old.offset + old.size].view(*_sides(old), -1).permute(2, 0, 1)
            image = filter(image, skip=len(entry.shape) > 2, transposed=transposed)
            slope = torch.where(image > 0, self.positive_slope, self.negative_slope)
            row.append((slope * image).permute(1, 2, 0).reshape(-1))
        return torch.cat(row)


def _sides(entry: Entry) -> tuple[int, int]:
    """Returns m and n of an entry's images: outputs and inputs; of a vector, 1 and its size."""
    return (entry.shape[0], entry.shape[1]) if len(entry.shape) > 1 else (1, entry.size)
