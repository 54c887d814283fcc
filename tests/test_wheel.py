"""Whoever has the wheel and no checkout: everything that is not code is in it, too.

The wheel lies alone in an environment that finds its dependencies where the tests find theirs.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
SMALL = "executor=serial num_clients=4 num_rounds=2 progress=false fleet=uniform"


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """Returns what runs Python with the wheel, in a folder."""
    place = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", place, ROOT], check=True)
    venv.create(place / "venv", symlinks=True)
    program = place / "venv" / "bin" / "python"
    where = [program, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    site = Path(subprocess.run(where, capture_output=True, text=True, check=True).stdout.strip())
    (wheel,) = place.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", site, wheel], check=True)
    # A path, whose own .pth files, as that of an editable checkout, are not read.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "FL_DATA_DIR")}

    def run(folder: Path, *words: str) -> str:
        done = subprocess.run(
            [program, *words], cwd=folder, env=kept, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
        return done.stdout

    return run


@pytest.mark.slow
def test_a_project_own_data_and_the_page_work_from_the_wheel_alone(python, tmp_path):
    said = python(tmp_path, "-c", "import fl; print(fl.__file__)").strip()
    assert not said.startswith(str(ROOT))
    python(tmp_path, "-m", "fl", "init", "first")
    project = tmp_path / "first"
    python(project, "-m", "fl", "-cd", "conf", "+experiment=machines", *SMALL.split())
    python(project, "-m", "unittest")

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
        python(tmp_path, "-m", "fl", *words)
    python(tmp_path, "-m", "fl", "report", "runs")
    assert (tmp_path / "runs" / "report.html").stat().st_size > 10_000
    assert "fedbuff" in python(tmp_path, "-m", "fl", "help", "strategy")
