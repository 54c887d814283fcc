"""Some entries of a model by themselves, and where they lie in the row of all."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from functools import cached_property
from typing import TYPE_CHECKING

from fl.vectors.layout import Layout

if TYPE_CHECKING:
    import torch


class Part:
    """Some entries of a model.

    A part of a row, or of a vector of trained numbers, is the row itself if the part is all of it.

    Args:
        whole: layout of the model.
        names: of the entries; the names of tied ones go together.

    Attributes:
        layout: of these entries.
    """

    def __init__(self, whole: Layout, names: Collection[str]) -> None:
        self.layout = whole.of_names(names)
        self._whole = whole

    @cached_property
    def _places(self) -> tuple[slice, ...]:
        """Where the part lies in a row, shape (d,)."""
        named = self.layout.names
        return joined(
            slice(e.offset, e.offset + e.size) for e in self._whole.floats if e.name in named
        )

    @cached_property
    def _trained_places(self) -> tuple[slice, ...]:
        """Where it lies in the vector of trained numbers, shape (p,)."""
        offset, places = 0, []
        for entry in self._whole.trainable:
            if entry.name in self.layout.names:
                places.append(slice(offset, offset + entry.size))
            offset += entry.size
        return joined(places)

    def take(self, rows: torch.Tensor) -> torch.Tensor:
        """Returns the part of rows of the whole, shape (..., d), as shape (..., d of the part)."""
        return _taken(rows, self._places)

    def take_trained(self, vectors: torch.Tensor) -> torch.Tensor:
        """Returns the part of vectors of trained numbers, shape (..., p), likewise."""
        return _taken(vectors, self._trained_places)

    def put(self, row: torch.Tensor, part: torch.Tensor) -> None:
        """Writes the part into a row of the whole, shape (d,)."""
        _write(row, part, self._places)

    def padded(self, vector: torch.Tensor) -> torch.Tensor:
        """Returns a vector of the part's trained numbers as one of the whole, with zeros elsewhere.

        Args:
            vector: shape (p of the part,).

        Returns:
            Shape (p,).
        """
        if len(vector) == self._whole.num_trainable:
            return vector
        whole = vector.new_zeros(self._whole.num_trainable)
        _write(whole, vector, self._trained_places)
        return whole

    def mask(self) -> torch.Tensor:
        """Returns which of the whole's trained numbers belong to the part: shape (p,), booleans."""
        import torch

        mask = torch.zeros(self._whole.num_trainable, dtype=torch.bool)
        for place in self._trained_places:
            mask[place] = True
        return mask


def joined(slices: Iterable[slice]) -> tuple[slice, ...]:
    """Returns slices with neighbours joined."""
    places: list[slice] = []
    for where in slices:
        if places and places[-1].stop == where.start:
            places[-1] = slice(places[-1].start, where.stop)
        else:
            places.append(where)
    return tuple(places)


def _taken(rows: torch.Tensor, places: tuple[slice, ...]) -> torch.Tensor:
    import torch

    if not places:
        return rows[..., :0]
    if sum(place.stop - place.start for place in places) == rows.shape[-1]:
        return rows
    return torch.cat([rows[..., place] for place in places], dim=-1)


def _write(row: torch.Tensor, part: torch.Tensor, places: tuple[slice, ...]) -> None:
    start = 0
    for place in places:
        stop = start + place.stop - place.start
        row[place] = part[start:stop]
        start = stop
