"""The entries of a model outside its row: integers and booleans, such as BatchNorm's counters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from flwr.app import Array, ArrayRecord

from fl.errors import ConfigError
from fl.flower.arrays import decode, read_array
from fl.vectors.layout import Layout

if TYPE_CHECKING:
    import torch


def carried(layout: Layout, record: ArrayRecord) -> dict[str, Array]:
    """Returns the carried entries of a record, for `to_record`.

    One that comes as a float, because a strategy computed with it, is rounded to the nearest number
    that its own type has.

    Raises:
        ConfigError: an entry is missing, or has another shape or type.
    """
    entries = {}
    for entry in layout.carried:
        if entry.name not in record:
            raise ConfigError(f"the record has no entry {entry.name!r} among {len(record)}")
        array = record[entry.name]
        values = decode(entry, array)
        entries[entry.name] = array if array.dtype == entry.dtype else Array(values)
    return entries


def median_carried(layout: Layout, entries: Sequence[Mapping[str, Array]]) -> dict[str, Array]:
    """Returns what becomes of the carried entries of several records: their median, by number.

    Of an even count it is the lower of the two in the middle, so it is a value that was sent, and
    fewer than half of the senders cannot push it anywhere. Of booleans it is the majority.

    Args:
        layout: of the model.
        entries: as `carried` takes them from records, at least one.
    """
    first, *others = entries
    median = {}
    for entry in layout.carried:
        array = first[entry.name]
        if any(other[entry.name].data != array.data for other in others):
            values = np.stack([read_array(each[entry.name]) for each in entries])
            array = Array(np.asarray(np.sort(values, axis=0)[(len(values) - 1) // 2]))
        median[entry.name] = array
    return median


def carried_tensors(entries: Mapping[str, Array]) -> dict[str, torch.Tensor]:
    """Returns carried entries as tensors of their own."""
    import torch

    return {name: torch.from_numpy(np.array(array.numpy())) for name, array in entries.items()}


def carried_arrays(tensors: Mapping[str, torch.Tensor]) -> dict[str, Array]:
    """Returns carried entries as arrays, for `to_record`."""
    return {name: Array(tensor.detach().cpu().numpy()) for name, tensor in tensors.items()}
