"""From encoded images to arrays, which are kept: decoding takes seconds.

They are under `$XDG_CACHE_HOME/fl` (or `~/.cache/fl`), in files named for the SHA-256 of the
encoded images and of what is made of them.
"""

from __future__ import annotations

import hashlib
import io
import os
import tempfile
from collections.abc import Callable, Sequence
from math import prod
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fl.errors import ConfigError
from fl.vectors.npy import read_header

Pixels: TypeAlias = NDArray[np.uint8]

_MODES = {1: "L", 3: "RGB"}


def pixels_of(
    name: str,
    encoded: Sequence[Any],
    place: Callable[[int], str],
    *,
    channels: int,
    size: tuple[int, int] | None = None,
    resize: bool = False,
    remedy: str = "",
) -> Pixels:
    """Returns images as pixels, shape (n, C, H, W), of at least one image.

    Args:
        name: of the data set, for the file that is kept.
        encoded: each image's bytes, of any format that Pillow reads.
        place: says of a number where that image is.
        channels: 1 for grey or 3 for colour; images are converted.
        size: (H, W); None is that of the first image.
        resize: bring images of another size to it; otherwise they are refused,
        remedy: with what else there is to do.

    Raises:
        ConfigError: an image cannot be decoded, or has another size, or there is no place to keep
            the pixels.
    """
    if size is None:
        width, height = _opened(encoded[0], place(0)).size
    else:
        height, width = size
    shape = (len(encoded), channels, height, width)
    digest = hashlib.sha256(f"{shape}{resize}".encode())
    for data in encoded:
        digest.update(data)
    cache = _cache_folder() / f"{name}-{digest.hexdigest()}.npy"
    pixels = _cached(cache, shape)
    if pixels is None:
        pixels = _decode(encoded, place, shape, None if resize else remedy)
        _write(cache, pixels)
    return pixels


def _opened(data: Any, place: str) -> Any:
    from PIL import Image

    try:
        image = Image.open(io.BytesIO(data))
        image.load()
    except Exception as error:  # each of Pillow's formats has its own
        raise ConfigError(
            f"{place} cannot be decoded ({type(error).__name__}: {error}): remove or replace it"
        ) from error
    return image


def _decode(
    encoded: Sequence[Any],
    place: Callable[[int], str],
    shape: tuple[int, int, int, int],
    remedy: str | None,
) -> Pixels:
    n, channels, height, width = shape
    try:
        pixels = np.empty((n, height, width, channels), dtype=np.uint8)
    except (MemoryError, ValueError) as error:
        raise ConfigError(
            f"{n} images of {height}x{width} pixels do not fit into memory: set a smaller data.size"
        ) from error
    for number, (row, data) in enumerate(zip(pixels, encoded, strict=True)):
        image = _opened(data, place(number))
        if image.size != (width, height) and remedy is not None:
            raise ConfigError(
                f"{place(number)} has {image.size[0]}x{image.size[1]} pixels: need {width}x{height}"
                f"{remedy}"
            )
        image = image.convert(_MODES[channels])
        if image.size != (width, height):
            image = image.resize((width, height), 2)  # bilinear, over all pixels that are merged
        row[...] = np.asarray(image).reshape(row.shape)
    return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))


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
