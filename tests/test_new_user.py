"""A new user: whoever has the wheel and no checkout, and types what docs/tutorial.md says.

The wheel lies alone in an environment that finds its dependencies where the tests find theirs. The
tutorial's lines of `fl` are prepared by tests/test_documented_lines.py as well, which is quick.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import sysconfig
import time
import venv
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "tutorial.md"
NOTEBOOKS = sorted((ROOT / "examples" / "notebooks").glob("*.ipynb"))
SMALL = "executor=serial num_clients=4 num_rounds=2 progress=false fleet=uniform"
QUICK = ["progress=false", "views=false"]
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def steps(text: str) -> Iterator[tuple[str, str]]:
    """What the reader does: the name of a file and what is put there, or a language and code."""
    for fence in _FENCE.finditer(text):
        language, content = fence.groups()
        if language == "yaml":
            yield re.findall(r"`([\w/]+\.yaml)`", text[: fence.start()])[-1], content
        elif re.search(r"^class ", content, re.MULTILINE):
            yield "mine.py", content
        else:
            yield language, content


def put(place: Path, name: str, content: str) -> None:
    """Writes a file of the page's, or adds to `mine.py`, which the project has."""
    path = place / name
    before = path.read_text("utf-8") + "\n\n" if name == "mine.py" else ""
    path.write_text(before + content, "utf-8")


@dataclass(frozen=True)
class Wheel:
    """An environment with the wheel."""

    program: Path
    environment: dict[str, str]

    def start(self, folder: Path, *words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [self.program, *words],
            cwd=folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def python(self, folder: Path, *words: str, status: int = 0) -> str:
        """What Python says in a folder."""
        with self.start(folder, *words) as run:
            said, _ = run.communicate()
        assert run.returncode == status, said[-3000:]
        return said

    def killed(self, folder: Path, words: list[str], directory: Path) -> None:
        """Runs a line of `fl` until it has answers of clients, and kills it."""
        with self.start(folder, "-m", "fl", *words) as run:
            journal = directory / "checkpoint" / "journal"
            while run.poll() is None and not (
                journal.is_file() and journal.stat().st_size > 100_000
            ):
                time.sleep(0.02)
            run.kill()
            assert run.wait() == -signal.SIGKILL, run.stdout and run.stdout.read()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Wheel:
    place = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", place, ROOT], check=True)
    venv.create(place / "venv", symlinks=True)
    program = place / "venv" / "bin" / "python"
    where = [program, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    site = Path(subprocess.run(where, capture_output=True, text=True, check=True).stdout.strip())
    (made,) = place.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", site, made], check=True)
    # A path, whose own .pth files, as that of an editable checkout, are not read.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    for each in metadata.distribution("flwr").entry_points.select(group="console_scripts"):
        script = program.with_name(each.name)
        script.write_text(f"#!{program}\nfrom {each.module} import {each.attr}\n{each.attr}()\n")
        script.chmod(0o755)
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "FL_DATA_DIR")}
    kept["PATH"] = f"{program.parent}{os.pathsep}{kept['PATH']}"
    return Wheel(program, kept)


@pytest.mark.slow
def test_the_tutorial_leads_from_an_empty_folder_to_a_deployment(wheel, tmp_path):
    said = wheel.python(tmp_path, "-c", "import fl; print(fl.__file__)").strip()
    assert not said.startswith(str(ROOT))
    place, told = tmp_path, ""
    for kind, content in steps(PAGE.read_text("utf-8")):
        if kind == "python":
            told = wheel.python(place, "-c", content)
        elif kind:
            put(place, kind, content)
        for line in [] if kind else map(shlex.split, content.splitlines()):
            runs = any("=" in word for word in line) and line[1] != "partition"
            words = [*line[1:], *(QUICK if runs else [])]
            if line[0] == "cd":
                place /= line[1]
            elif "hydra.run.dir=runs/long" in line:
                wheel.killed(place, words, place / "runs" / "long")
            else:  # two runs that differ are said to
                wheel.python(place, "-m", "fl", *words, status=int(line[1] == "compare"))
    assert told.endswith("True\n")  # the deployment's model is the simulation's
    assert place == tmp_path / "first"
    summaries = [path for path in tmp_path.rglob("summary.json")]
    assert len(summaries) == 1 + 1 + 2 + 2 + 12 + 1 + 2 + 1
    for path in summaries:
        assert json.loads(path.read_text("utf-8"))["status"] == "completed"
    assert (place / "multirun" / "cells" / "report.html").is_file()
    rounds, buffer = (
        json.loads((place / "runs" / name / "summary.json").read_text("utf-8"))
        for name in ("rounds", "buffer")
    )
    assert rounds["totals"]["virtual_s"] > 600
    assert buffer["totals"]["virtual_s"] < 1
    wheel.python(place, "-m", "unittest")  # the project's own test


@pytest.mark.slow
def test_images_and_tables_of_the_users_own_and_the_page_work(wheel, tmp_path):
    rng = np.random.default_rng(0)
    lines = [f"{a:.3f},{b:.3f},{int(a > b)}" for a, b in rng.normal(size=(60, 2))]
    (tmp_path / "own.csv").write_text("\n".join(["a,b,y", *lines]))
    for name, grey in (("dark", 60), ("bright", 190)):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(12):
            pixels = rng.normal(grey, 40, (12, 12, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{i}.png")
    own = ["data=table data.path=own.csv data.target=y", "data=image_folder data.path=photos"]
    for number, data in enumerate(own):
        words = [*SMALL.split(), *data.split(), "partition=iid", f"hydra.run.dir=runs/{number}"]
        wheel.python(tmp_path, "-m", "fl", *words)
    wheel.python(tmp_path, "-m", "fl", "report", "runs")
    assert (tmp_path / "runs" / "report.html").stat().st_size > 10_000
    assert "fedbuff" in wheel.python(tmp_path, "-m", "fl", "help", "strategy")


@pytest.mark.slow
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_run(wheel, notebook, tmp_path):
    cells = json.loads(notebook.read_text("utf-8"))["cells"]
    script = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "code")
    wheel.python(tmp_path, "-c", script)
