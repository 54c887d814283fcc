"""Settings every test runs under, and the fixtures shared by all packages.

The environment is set here, before any test module is imported, because numerical libraries read
the number of threads once, when they load.
"""

import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

ENVIRONMENT = {
    # One thread: the order of additions, and so the last bit of a sum, does not depend on the host.
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    # No test talks to the network.
    "FLWR_TELEMETRY_ENABLED": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "HF_HUB_OFFLINE": "1",
    # Plots are files.
    "MPLBACKEND": "Agg",
}
os.environ.update(ENVIRONMENT)

# What Flower and Ray keep for their user is kept for this process alone: others may test at the
# same time. Ray's sockets are below, and a socket's path must be short.
OWN = Path(tempfile.mkdtemp(prefix="fl-", dir="/tmp"))
os.environ.update({"FLWR_HOME": str(OWN / "flwr"), "RAY_TMPDIR": str(OWN)})


def pytest_sessionfinish() -> None:
    """Removes what the tests have left to Flower and Ray."""
    shutil.rmtree(OWN, ignore_errors=True)


# The same examples on every run; no deadline, because a shared machine may pause for longer.
settings.register_profile("fl", deadline=None, derandomize=True)
settings.load_profile("fl")


@pytest.fixture(autouse=True)
def no_handlers_left() -> Iterator[None]:
    """Closes what the command line has set up for its process, which is that of all tests."""
    loggers = [logging.getLogger(name) for name in (None, "fl", "flwr", "hydra")]
    before = [logger.handlers.copy() for logger in loggers]
    yield
    for logger, handlers in zip(loggers, before, strict=True):
        for handler in logger.handlers.copy():
            if handler not in handlers:
                logger.removeHandler(handler)
                handler.close()
        logger.handlers[:] = handlers


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder named by FL_DATA_DIR; the test skips if the variable is unset."""
    value = os.environ.get("FL_DATA_DIR")
    if not value:
        pytest.skip("FL_DATA_DIR is unset: it names a folder with <name>/{train,test}.parquet")
    path = Path(value)
    if not path.is_dir():
        pytest.fail(f"FL_DATA_DIR={value} is not a folder: correct the variable, or unset it")
    return path
