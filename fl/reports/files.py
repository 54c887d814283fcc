"""Files of runs' directories, which may be somebody else's: read only as what they must be."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from fl.errors import ConfigError

SUMMARY_BYTES = 64 * 10**6
"""Most that a summary.json may have."""


@contextmanager
def opened(path: Path, most_bytes: int) -> Iterator[BinaryIO]:
    """Opens a file that lies where it seems to lie, to be read.

    A symbolic link could show anything that its reader may read, a pipe never ends, and a size
    is checked before memory is asked for.

    Args:
        path: of the file.
        most_bytes: size beyond which it is not read.

    Raises:
        ConfigError: it is missing, is no plain file, is too large, or cannot be read.
    """
    try:
        # Opening a pipe would wait for somebody to write.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        what = "is a symbolic link" if path.is_symlink() else error.strerror
        raise ConfigError(f"{path} cannot be read: {what}") from error
    with open(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise ConfigError(f"{path} cannot be read: it is no plain file")
        if found.st_size > most_bytes:
            raise ConfigError(
                f"{path} cannot be read: it has {found.st_size} bytes, more than {most_bytes}"
            )
        yield file


def read_file(path: Path, most_bytes: int) -> bytes:
    """Returns what is in a file that lies where it seems to lie, see `opened`."""
    with opened(path, most_bytes) as file:
        return file.read(most_bytes)


def printable(text: str) -> str:
    r"""Returns text on one line, with what would steer a terminal written as `\x1b`."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
