import os
from pathlib import Path

import numpy as np
import pytest

from fl.data import Examples, Source


@pytest.fixture(scope="session")
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder of decoded images for all tests that read real data sets, in all processes."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        return tmp_path_factory.getbasetemp().parent / "cache"
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def real_data(data_dir: Path, shared_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(shared_cache))
    return data_dir


class Untouchable:
    """Inputs that nobody may look at."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n


@pytest.fixture
def sorted_source() -> Source:
    """1,000 examples of ten classes, 100 each, sorted by class, whose inputs cannot be read."""
    y = np.repeat(np.arange(10, dtype=np.int64), 100)
    return Source(
        name="toy",
        train=Examples(Untouchable(1000), y),
        test=Examples(Untouchable(10), np.arange(10, dtype=np.int64)),
        num_classes=10,
        input_shape=(1,),
    )
