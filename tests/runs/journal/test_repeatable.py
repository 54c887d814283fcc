"""Source that uses what is never the same twice is found, and other source is left in peace."""

from __future__ import annotations

from pathlib import Path

import pytest

from fl.runs.apps import read_app
from fl.runs.journal.repeatable import unrepeatable, unseeded

ROOT = Path(__file__).parents[3]

FOUND = {
    "import time\nt = time.clock_gettime(1)": "time.clock_gettime in app.py, line 2",
    "from os import times as now\nnow()": "os.times in app.py, line 2",
    "from pandas import Timestamp\nTimestamp.now()": "pandas.Timestamp.now in app.py",
    "import pandas as p\np.Timestamp.utcnow()": "pandas.Timestamp.utcnow in app.py",
    "import secrets\nsecrets.token_hex(3)": "secrets.token_hex in app.py",
    "import numpy as np\nnp.random.default_rng()": "numpy.random.default_rng in app.py",
    "import threading\nthreading.Thread(target=print)": "threading.Thread in app.py",
    "from concurrent.futures import ThreadPoolExecutor as T\nT()": "concurrent.futures.Thread",
    "import requests\nrequests.get('x')": "requests.get in app.py",
    "def f():\n  import uuid\n  return uuid.uuid4()": "uuid.uuid4 in app.py, line 3",
    "input()": "input in app.py, line 1 (the network, or somebody's input)",
}
FINE = [
    "import time\ntime.sleep(1)\nt = time.time()",
    "import numpy as np\nnp.random.default_rng(3)\nnp.random.normal()",
    "import random\nrandom.Random(1)\nrandom.random()",
    "import threading\nlock = threading.Lock()",
    "class A:\n  def now(self): ...\nA().now()\ninput = 3",
    "import datetime\ndatetime.timedelta(3)",
    "from datetime import date, datetime\ndatetime.now(), datetime.utcnow(), date.today()",
    "import time\ntime.monotonic(), time.perf_counter_ns(), time.strftime('%c'), time.localtime()",
]


@pytest.mark.parametrize("source", FOUND)
def test_call_that_does_not_repeat_is_named(tmp_path: Path, source: str) -> None:
    path = tmp_path / "app.py"
    path.write_text(source)
    assert FOUND[source] in str(unrepeatable([path]))


@pytest.mark.parametrize("source", FINE)
def test_call_that_repeats_is_no_obstacle(tmp_path: Path, source: str) -> None:
    path = tmp_path / "app.py"
    path.write_text(source)
    assert unrepeatable([path]) is None


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("import uuid\nuuid.uuid4()", "uuid.uuid4 in app.py, line 2"),
        ("import numpy as np\nnp.random.default_rng()", "numpy.random.default_rng in app.py"),
        ("import time\ntime.clock_gettime(1)", "time.clock_gettime in app.py"),
        ("import threading, requests\nthreading.Thread(target=print)\nrequests.get('x')", None),
        ("import time, datetime\ntime.perf_counter(), datetime.datetime.now()", None),
        ("import numpy as np\nnp.random.default_rng(3), np.random.normal()", None),
    ],
)
def test_what_makes_clients_unlike_in_two_runs_is_named(
    tmp_path: Path, source: str, told: str | None
) -> None:
    path = tmp_path / "app.py"
    path.write_text(source)
    found = unseeded([path])
    assert found is None if told is None else told in str(found)


def test_many_calls_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "app.py"
    path.write_text("import os\n" + "os.urandom(3)\n" * 5)
    assert "line 4 (random numbers without a seed) and 2 more calls" in str(unrepeatable([path]))


def test_files_of_an_app_are_those_its_module_imports(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text(
        "[tool.flwr.app.components]\nserverapp = 'pkg.server:app'\nclientapp = 'pkg.client:app'\n"
    )
    package = tmp_path / "pkg"
    (package / "deep").mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "server.py").write_text("from .deep import inner\nfrom pkg.task import x\nimport os")
    (package / "client.py").write_text("import alone")
    (package / "task.py").write_text("def f():\n    from . import lazy")
    (package / "lazy.py").touch()
    (package / "deep" / "__init__.py").touch()
    (package / "deep" / "inner.py").write_text("from ..lazy import y")
    (tmp_path / "alone.py").touch()
    app = read_app(tmp_path)

    def names(reference: str) -> list[str]:
        return [str(path.relative_to(tmp_path)) for path in app.files(reference)]

    assert names(app.serverapp) == [
        *("pkg/__init__.py", "pkg/deep/__init__.py", "pkg/deep/inner.py"),
        *("pkg/lazy.py", "pkg/server.py", "pkg/task.py"),
    ]
    assert names(app.clientapp) == ["alone.py", "pkg/__init__.py", "pkg/client.py"]


def test_example_app_can_be_resumed() -> None:
    app = read_app(ROOT / "examples" / "fedbuff_app")
    assert app.files(app.serverapp)
    assert unrepeatable(app.files(app.serverapp)) is None
