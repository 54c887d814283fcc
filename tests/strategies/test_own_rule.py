"""A rule of the user's own, in a file beside the working directory, as CONTRIBUTING.md has it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import fl

ROOT = Path(fl.__file__).parents[1]


def test_the_rule_of_the_contributors_page_runs_from_a_folder_of_its_own(tmp_path):
    page = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    (code,) = [c for c in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "RoundRule" in c]
    (line,) = re.findall(r"`fl (strategy\.rule\._target_=\S+ \S+)`", page)
    (tmp_path / "mine.py").write_text(code)
    quick = ["executor=serial", "progress=false", "views=false", "num_rounds=3", "fleet=uniform"]
    done = subprocess.run(
        [sys.executable, "-m", "fl", *line.split(), *quick, "hydra.run.dir=run"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["config"]["strategy"]["rule"]["_target_"] == "mine.SignFedAvg"
    assert summary["best"]["loss"]["round"] == 3  # every step went down
