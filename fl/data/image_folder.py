"""A folder of the user's own images: a folder in it for every class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fl.checks import at_least
from fl.data.federated import Examples, IntArray, Partitions, Source, per_channel
from fl.data.held_out import TEST, drawn
from fl.data.pixels import Pixels, pixels_of
from fl.errors import ConfigError

_IMAGES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")

Color = Literal["rgb", "grey"]
CHANNELS = {"grey": 1, "rgb": 3}
UNEQUAL = ", as the first; data.size=32, for one, brings all to 32x32"


def load_image_folder(
    path: str,
    size: int | Sequence[int] | None = None,
    color: Color = "rgb",
    test_fraction: float = 0.2,
) -> Source:
    """Loads images, uint8 of shape (n, C, H, W), whose classes are the names of their folders.

    `path/CLASS/*.png`, or `path/train/CLASS/*.png` and `path/test/CLASS/*.png` ("val" and
    "validation" are other names of the latter). Classes are numbered by name. A model sees each
    channel with mean 0 and deviation 1 over the training images.

    Args:
        path: of the folder.
        size: height and width that images are brought to; one number is both. None: all must have
            the size of the first.
        color: "rgb", C = 3, or "grey", C = 1.
        test_fraction: share of each class that is held out, where there are no folders for it.

    Raises:
        ConfigError: there is no such folder, a class has no image, an image cannot be read or has
            another size, or an argument is out of range.
    """
    channels, wanted = checked(size, color)
    if not isinstance(path, str) or not Path(path).expanduser().is_dir():
        raise ConfigError(
            f"path is {path!r}; it must be a folder with a folder of images for every class (here "
            f"is {Path.cwd()})"
        )
    root = Path(path).expanduser()
    folders = _folders(root)
    held_out = next((name for name in TEST if name in folders), None)
    splits = [root]
    if {*folders} == {"train", held_out}:
        splits = [root / "train", root / str(held_out)]
        found = {name for split in splits for name in _folders(split)}
        classes = sorted(found)
    else:
        classes = folders
    if len(classes) < 2:
        raise ConfigError(f"path is {path!r}, which has folders of {len(classes)} class: need 2")
    files, labels, ends = [], [], []
    for split in splits:
        for number, name in enumerate(classes):
            images = _images(split / name)
            if not images and split is splits[0]:
                raise ConfigError(
                    f"path is {path!r}, and {split / name} has no images ({', '.join(_IMAGES)})"
                )
            files += images
            labels += [number] * len(images)
        ends.append(len(files))
    y = np.array(labels, np.int64)
    if len(splits) == 1:
        test = drawn(len(y), test_fraction, y)
    else:
        test = np.arange(len(y)) >= ends[0]
        if not test.any():
            raise ConfigError(f"path is {path!r}, and {splits[1]} has no images")
    encoded = [file.read_bytes() for file in files]
    pixels = pixels_of(
        "image_folder",
        encoded,
        lambda i: str(files[i]),
        channels=channels,
        size=wanted,
        resize=wanted is not None,
        remedy=UNEQUAL,
    )
    return of_pixels(root.name, pixels, y, test, len(classes))


def checked(size: int | Sequence[int] | None, color: str) -> tuple[int, tuple[int, int] | None]:
    """Returns the number of channels, and (H, W) if it is given.

    Raises:
        ConfigError: one is none.
    """
    if color not in CHANNELS:
        raise ConfigError(f"color is {color!r}; it must be rgb or grey")
    if size is None:
        return CHANNELS[color], None
    both = [size, size] if isinstance(size, int) else [*size] if not isinstance(size, str) else []
    if len(both) != 2:
        raise ConfigError(f"size is {size!r}; it must be a number of pixels, or [height,width]")
    for each in both:
        at_least("size", each, 1)
    return CHANNELS[color], (both[0], both[1])


def of_pixels(
    name: str,
    pixels: Pixels,
    y: IntArray,
    test: NDArray[np.bool_],
    num_classes: int,
    natural: Partitions | None = None,
    natural_test: Partitions | None = None,
) -> Source:
    """Returns the source of n images.

    Args:
        name: of the data set.
        pixels: uint8, shape (n, C, H, W).
        y: classes, int64, shape (n,).
        test: which are held out, shape (n,).
        num_classes: C.
        natural: as of `Source`.
        natural_test: likewise.
    """
    train = pixels[~test]
    # Of counts of the 256 values: exact, and no float copy of all images.
    counts = [np.bincount(train[:, c].ravel(), minlength=256) for c in range(train.shape[1])]
    levels = np.arange(256) / 255.0
    means = [np.average(levels, weights=of) for of in counts]
    deviations = [
        np.sqrt(np.average((levels - m) ** 2, weights=of))
        for m, of in zip(means, counts, strict=True)
    ]
    return Source(
        name=name,
        train=Examples(train, y[~test]),
        test=Examples(pixels[test], y[test]),
        num_classes=num_classes,
        input_shape=pixels.shape[1:],
        scaling=per_channel(255.0, means, [d if d > 0 else 1.0 for d in deviations]),
        natural=natural,
        natural_test=natural_test,
    )


def _folders(root: Path) -> list[str]:
    return sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))


def _images(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in _IMAGES and p.is_file())
