"""One run at a time in a directory."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from fl.errors import ConfigError
from fl.reports.atomic import remove_leftovers
from fl.reports.files import printable

FOLDER = "checkpoint"
_LOCK = "lock"


class Claim:
    """The right to write a run's directory, held until `release`, or until the process dies.

    The operating system holds it on a file, so a process that is killed leaves none behind.

    Args:
        directory: of the run; made if missing.

    Raises:
        ConfigError: another process holds it, or the directory cannot be written.
    """

    def __init__(self, directory: Path) -> None:
        self.folder = directory / FOLDER
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW  # a link's file would lose its content
            self._descriptor = os.open(self.folder / _LOCK, flags, 0o666)
        except OSError as error:
            raise ConfigError(
                f"{error.filename or directory} cannot be written ({error.strerror}): a run leaves "
                "its results there; give another directory, hydra.run.dir=DIR"
            ) from error
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = printable(os.read(self._descriptor, 32).decode(errors="replace").strip())
            os.close(self._descriptor)
            if not isinstance(error, BlockingIOError):
                raise ConfigError(f"{directory} cannot be locked: {error.strerror}") from error
            raise ConfigError(
                f"{directory} belongs to a run that is going on (process {holder or '?'}): wait "
                "for its end, or stop it first"
            ) from error
        remove_leftovers(self.folder)
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, f"{os.getpid()}\n".encode(), 0)

    def release(self, *, remove: bool) -> None:
        """Gives the right back; a second time does nothing.

        Args:
            remove: also remove the folder, if there is nothing else in it.
        """
        if self._descriptor < 0:
            return
        if remove:
            (self.folder / _LOCK).unlink(missing_ok=True)
            if not any(self.folder.iterdir()):
                self.folder.rmdir()
        os.close(self._descriptor)
        self._descriptor = -1
