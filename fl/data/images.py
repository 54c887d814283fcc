"""MNIST and CIFAR-10, from a local folder or from the Hugging Face hub.

With the environment variable FL_DATA_DIR set, `<FL_DATA_DIR>/<name>/{train,test}.parquet` is read,
in the hub's columns. Otherwise `datasets.load_dataset` fetches them.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np

from fl.data.federated import Examples, IntArray, Source, per_channel
from fl.data.pixels import pixels_of
from fl.errors import ConfigError
from fl.extras import check_importable

if TYPE_CHECKING:
    import pyarrow as pa

log = logging.getLogger("fl.data")

SplitName: TypeAlias = Literal["train", "test"]

_CLASSES = 10


@dataclass(frozen=True)
class ImageSet:
    """Where an image data set is, and what is in it.

    Attributes:
        name: folder under FL_DATA_DIR.
        hub_id: repository on the Hugging Face hub.
        image_column: column of encoded images; "label" is that of classes.
        shape: of one image, (C, H, W).
        mean: of the training pixels divided by 255, per channel.
        std: likewise.
    """

    name: str
    hub_id: str
    image_column: str
    shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]


MNIST = ImageSet("mnist", "ylecun/mnist", "image", (1, 28, 28), (0.1307,), (0.3081,))
CIFAR10 = ImageSet(
    "cifar10",
    "uoft-cs/cifar10",
    "img",
    (3, 32, 32),
    (0.4914, 0.4822, 0.4465),
    (0.2470, 0.2435, 0.2616),
)


def load_mnist(num_train: int | None = None, num_test: int | None = None) -> Source:
    """Loads MNIST: 60,000 and 10,000 grey images of 28x28 pixels, ten digits.

    Args:
        num_train: keep only the first that many training images; None: all.
        num_test: keep only the first that many test images; None: all.

    Raises:
        ConfigError: neither the folder nor the hub has it, or a limit out of range.
    """
    return _source(MNIST, num_train, num_test)


def load_cifar10(num_train: int | None = None, num_test: int | None = None) -> Source:
    """Loads CIFAR-10: 50,000 and 10,000 colour images of 32x32 pixels, ten classes.

    A copy re-encoded as JPEG is lossy: accuracies come out a little under those published.

    Args:
        num_train: keep only the first that many training images; None: all.
        num_test: keep only the first that many test images; None: all.

    Raises:
        ConfigError: neither the folder nor the hub has it, or a limit out of range.
    """
    return _source(CIFAR10, num_train, num_test)


def _source(images: ImageSet, num_train: int | None, num_test: int | None) -> Source:
    check_importable(f"data={images.name}", "pyarrow")
    return Source(
        name=images.name,
        train=_first(read_split(images, "train"), num_train, "num_train"),
        test=_first(read_split(images, "test"), num_test, "num_test"),
        num_classes=_CLASSES,
        input_shape=images.shape,
        scaling=per_channel(255.0, images.mean, images.std),
    )


def _first(examples: Examples, limit: int | None, key: str) -> Examples:
    if limit is None:
        return examples
    if not 1 <= limit <= len(examples):
        raise ConfigError(
            f"{key}={limit}: 1 to {len(examples)} images can be kept, or null for all"
        )
    return examples.take(slice(limit))


def read_split(images: ImageSet, split: SplitName) -> Examples:
    """Reads one split: pixels uint8, shape (n, C, H, W), and classes.

    Raises:
        ConfigError: it cannot be found or read, or has other columns, labels or images than
            expected.
    """
    table = _encoded(images, split)
    encoded = _bytes(images, split, table)
    labels = _labels(images, split, table)
    channels, *size = images.shape
    pixels = pixels_of(
        f"{images.name}-{split}",
        [value.as_buffer() for value in encoded],  # which does not copy
        lambda number: f"image {number} of split {split!r} of {images.name}",
        channels=channels,
        size=(size[0], size[1]),
    )
    return Examples(pixels, labels)


def _bytes(images: ImageSet, split: SplitName, table: pa.Table) -> pa.Array:
    import pyarrow as pa

    column = table.column(images.image_column)
    fields = [field.name for field in column.type] if pa.types.is_struct(column.type) else []
    wrong = f"column {images.image_column!r} of split {split!r} of {images.name}"
    if "bytes" not in fields or not pa.types.is_binary(column.type.field("bytes").type):
        raise ConfigError(
            f"{wrong} has type {column.type}: need struct of bytes and path, as {images.hub_id} on "
            "the Hugging Face hub has"
        )
    encoded = column.combine_chunks().field("bytes")
    if not len(column) or column.null_count or encoded.null_count:
        missing = max(column.null_count, encoded.null_count)
        raise ConfigError(
            f"{wrong} has {len(column)} rows, {missing} of them without an image: need an image in "
            "each, and one at least"
        )
    return encoded


def _labels(images: ImageSet, split: SplitName, table: pa.Table) -> IntArray:
    import pyarrow as pa

    column = table.column("label")
    wrong = f"column 'label' of split {split!r} of {images.name}"
    if not pa.types.is_integer(column.type) or column.null_count:
        raise ConfigError(
            f"{wrong} has type {column.type} and {column.null_count} empty rows: need a whole "
            "number in each"
        )
    labels: IntArray = column.to_numpy().astype(np.int64)
    outside = np.flatnonzero((labels < 0) | (labels >= _CLASSES))
    if len(outside):
        raise ConfigError(
            f"{wrong} has {labels[outside[0]]} in row {outside[0]}: need 0 to {_CLASSES - 1} "
            f"({len(outside)} rows are not)"
        )
    return labels


def _encoded(images: ImageSet, split: SplitName) -> pa.Table:
    root = os.environ.get("FL_DATA_DIR")
    table = _from_hub(images, split) if root is None else _from_folder(images, split, Path(root))
    missing = {images.image_column, "label"} - set(table.column_names)
    if missing:
        raise ConfigError(
            f"split {split!r} of {images.name} has columns {table.column_names}, without "
            f"{sorted(missing)}: need those of {images.hub_id} on the Hugging Face hub"
        )
    return table


def _from_folder(images: ImageSet, split: SplitName, root: Path) -> pa.Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = root / images.name / f"{split}.parquet"
    if not path.is_file():
        raise ConfigError(
            f"FL_DATA_DIR={root}, but there is no {path}: put {_layout(images)} there, "
            "or unset FL_DATA_DIR to read from the Hugging Face hub"
        )
    try:
        return pq.read_table(path)
    except (pa.ArrowException, OSError, MemoryError, UnicodeDecodeError) as error:
        why = " ".join(str(error).split())  # Arrow's reasons have several lines
        raise ConfigError(
            f"{path} is not a whole Parquet file ({why}): put {_layout(images)} there"
        ) from error


def _from_hub(images: ImageSet, split: SplitName) -> pa.Table:
    check_importable(f"data={images.name} without FL_DATA_DIR", "datasets")
    import datasets

    log.info(
        "%s is looked for on the Hugging Face hub, which may take a while: FL_DATA_DIR is not set",
        images.hub_id,
    )
    try:
        rows = datasets.load_dataset(images.hub_id, split=split)
    except OSError as error:  # of which ConnectionError and the hub's "not found" are kinds
        raise ConfigError(
            f"{images.hub_id} cannot be read from the Hugging Face hub ({error}): go online, or "
            f"set FL_DATA_DIR to a folder with {_layout(images)}"
        ) from error
    undecoded = rows.cast_column(images.image_column, datasets.Image(decode=False))
    return undecoded.with_format("arrow")[:]


def _layout(images: ImageSet) -> str:
    return (
        f"{images.name}/train.parquet and {images.name}/test.parquet (columns "
        f"{images.image_column!r}: struct of bytes and path, 'label': integer)"
    )
