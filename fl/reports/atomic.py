"""Files that are either the old version or the complete new one, never half of it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_SUFFIX = ".tmp"


def remove_leftovers(folder: Path) -> None:
    """Removes what processes that were killed inside `replacing` have left in a folder.

    Nobody else may write there.
    """
    for path in folder.glob(f".*{_SUFFIX}"):
        path.unlink(missing_ok=True)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives a temporary path to write to; on success it takes the place of `path`.

    The temporary file lies in the same folder, so the final rename is atomic. It is flushed to the
    disk first: otherwise a power cut could leave a renamed but empty file. If the block raises, the
    temporary file is removed and `path` is what it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}{_SUFFIX}")
    temporary.unlink(missing_ok=True)
    # Made here: a link that somebody has put there would lead what is written to another file.
    os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
