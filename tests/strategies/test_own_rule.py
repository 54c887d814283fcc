"""A rule of the user's own, in a file beside the working directory, as CONTRIBUTING.md has it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import fl

ROOT = Path(fl.__file__).parents[1]


QUICK = ["executor=serial", "progress=false", "views=false", "num_rounds=3", "fleet=uniform"]


@pytest.mark.parametrize(
    ("kind", "module", "name"),
    [("RoundRule", "mine", "SignFedAvg"), ("EventRule", "late", "Halving")],
)
def test_a_rule_of_the_contributors_page_runs_from_a_folder_of_its_own(
    tmp_path, kind, module, name
):
    page = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    codes = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (code,) = [c for c in codes if f"({kind})" in c]
    (line,) = re.findall(rf"`fl ([^`]*strategy\.rule\._target_={module}\.{name}[^`]*)`", page)
    (tmp_path / f"{module}.py").write_text(code)
    done = subprocess.run(
        [sys.executable, "-m", "fl", *line.split(), *QUICK, "hydra.run.dir=run"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["config"]["strategy"]["rule"]["_target_"] == f"{module}.{name}"
    assert summary["best"]["loss"]["round"] == 3  # every step went down
