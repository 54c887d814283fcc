"""A directory belongs to one run at a time, and to nobody after that run's process has died."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from fl.errors import ConfigError
from fl.runs.journal.claim import FOLDER, Claim


def test_directory_of_a_run_that_goes_on_is_refused_until_its_process_dies(tmp_path: Path) -> None:
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        Claim(tmp_path)
        os.write(write, b"x")
        signal.pause()
        os._exit(0)
    try:
        os.read(read, 1)
        with pytest.raises(ConfigError, match=rf"a run that is going on \(process {child}\)"):
            Claim(tmp_path)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(read)
        os.close(write)
    Claim(tmp_path).release(remove=True)
    assert not (tmp_path / FOLDER).exists()


def test_folder_with_something_in_it_stays(tmp_path: Path) -> None:
    claim = Claim(tmp_path)
    (claim.folder / "journal").touch()
    claim.release(remove=True)
    claim.release(remove=True)
    assert [path.name for path in claim.folder.iterdir()] == ["journal"]
    Claim(tmp_path).release(remove=False)


def test_directory_that_cannot_be_written_is_refused_with_a_remedy(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"cannot be written \(Not a directory\).*hydra.run.dir"):
        Claim(tmp_path / "file" / "run")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write to every directory")
def test_read_only_directory_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    with pytest.raises(ConfigError, match=r"cannot be written \(Permission denied\)"):
        Claim(tmp_path)
