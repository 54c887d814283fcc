"""Bitmaps in messages: which numbers of a model's tensors a part has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord
from numpy.typing import NDArray

from fl.errors import ConfigError
from fl.flower.arrays import read_array
from fl.submodels import CLASSES_KEY, MASKS_KEY, SubModel, masked
from fl.vectors.layout import Layout


def masks_record(bitmaps: Mapping[str, NDArray[np.uint8]]) -> ArrayRecord:
    """Returns the record of a part's `SubModel.bitmaps`."""
    return ArrayRecord({name: Array(bits) for name, bits in bitmaps.items()})


def read_moved(layout: Layout, part: SubModel, record: Any) -> SubModel:
    """Returns the part that a client holds after it has moved the mask that it was sent.

    Args:
        layout: of the whole model.
        part: that it was sent.
        record: of the reply; anything.

    Raises:
        ConfigError: it is none of as many numbers of the same tensors.
    """
    moved = masked(layout, read_masks(layout, record))
    if moved.size != part.size or moved.bitmaps.keys() != part.bitmaps.keys():
        raise ConfigError(
            f"the reply's {MASKS_KEY!r} have other numbers of places than the message's; a "
            "client may move them within their tensors"
        )
    return moved


def read_classes(record: Any, num_classes: int) -> NDArray[np.bool_]:
    """Returns which classes a reply says that its client has, shape (C,).

    Args:
        record: of the reply; anything.
        num_classes: C.

    Raises:
        ConfigError: it has no bit for each class.
    """
    array = record.get(CLASSES_KEY) if isinstance(record, ArrayRecord) else None
    bits = None if array is None else read_array(array)
    if bits is None or bits.dtype != np.uint8 or bits.shape != (-(-num_classes // 8),):
        raise ConfigError(
            f"the reply's {CLASSES_KEY!r} must have a bit for each of {num_classes} classes: use "
            "clients that obey 'own-classes', or set sub_models.masked_loss to false"
        )
    return np.unpackbits(bits, count=num_classes).astype(bool)


def read_masks(layout: Layout, record: Any) -> dict[str, NDArray[np.bool_]]:
    """Returns which numbers of tensors a message has, shape (size,) each.

    Args:
        layout: of the whole model.
        record: of the message; anything.

    Raises:
        ConfigError: the record is none of bitmaps of this model.
    """
    sizes = {entry.name: entry.size for entry in layout.floats}
    masks = {}
    for name, array in record.items() if isinstance(record, ArrayRecord) else ():
        bits = read_array(array)
        if name not in sizes or bits.dtype != np.uint8 or bits.shape != (-(-sizes[name] // 8),):
            raise ConfigError(
                f"the message's {MASKS_KEY!r} has {bits.dtype} of shape {bits.shape} for "
                f"{name!r:.80}; it must have a bit for each number of an entry of the model"
            )
        masks[name] = np.unpackbits(bits, count=sizes[name]).astype(bool)
    return masks
