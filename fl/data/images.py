"""MNIST and CIFAR-10, from a local folder or from the Hugging Face hub.

With the environment variable FL_DATA_DIR set, `<FL_DATA_DIR>/<name>/{train,test}.parquet` is read,
in the hub's columns. Otherwise `datasets.load_dataset` fetches them. Decoding the images takes
seconds, so the decoded pixels are kept under `$XDG_CACHE_HOME/fl` (or `~/.cache/fl`), in a file
named for the SHA-256 of the encoded images.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
import tempfile
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fl.data.federated import Examples, IntArray, Source, per_channel
from fl.errors import ConfigError
from fl.vectors.npy import read_header

if TYPE_CHECKING:
    import pyarrow as pa

log = logging.getLogger("fl.data")

SplitName: TypeAlias = Literal["train", "test"]
Pixels: TypeAlias = NDArray[np.uint8]

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
    digest = hashlib.sha256()
    for value in encoded:  # as_buffer does not copy; the array's own buffers may be slices
        digest.update(value.as_buffer())
    cache = _cache_folder() / f"{images.name}-{split}-{digest.hexdigest()}.npy"
    pixels = _cached(cache, (len(labels), *images.shape))
    if pixels is None:
        pixels = _decode(images, split, encoded.to_pylist())
        _write(cache, pixels)
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


def _cached(path: Path, shape: tuple[int, ...]) -> Pixels | None:
    """Returns decoded pixels kept before; None if there are none, or the file is damaged."""
    if not path.is_file():
        return None
    try:
        with open(path, "rb") as file:
            claim = read_header(file.read(10_012))
        if claim[:3] != ("uint8", shape, False) or path.stat().st_size != claim[3] + prod(shape):
            return None
        found: Pixels = np.load(path)
    except (OSError, ValueError, EOFError):
        return None
    return found


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


def _decode(images: ImageSet, split: SplitName, encoded: list[bytes]) -> Pixels:
    from PIL import Image

    channels, height, width = images.shape
    pixels = np.empty((len(encoded), height, width, channels), dtype=np.uint8)
    mode = "L" if channels == 1 else "RGB"
    for number, (row, data) in enumerate(zip(pixels, encoded, strict=True)):
        try:
            image = Image.open(io.BytesIO(data))
            image.load()
        except Exception as error:  # each of Pillow's formats has its own
            raise ConfigError(
                f"image {number} of split {split!r} of {images.name} cannot be decoded "
                f"({type(error).__name__}: {error}): remove or replace the row"
            ) from error
        if image.size != (width, height):
            raise ConfigError(
                f"an image of {images.name} has {image.size[0]}x{image.size[1]} pixels: "
                f"need {width}x{height}"
            )
        row[...] = np.asarray(image.convert(mode)).reshape(row.shape)
    return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fl"


def _write(path: Path, array: NDArray[Any]) -> None:
    # A name appears only with its whole content, whoever else writes it at the same time.
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            part = Path(folder) / path.name
            np.save(part, array)
            part.replace(path)
    except OSError as error:
        raise ConfigError(
            f"decoded images cannot be kept in {path.parent} ({error}): set XDG_CACHE_HOME to a "
            f"folder with {array.nbytes / 1e6:.0f} MB to write to"
        ) from error
