"""The page of benchmarks at several commits."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_newest_figure_is_set_against_the_median_of_those_before(tmp_path):
    for day, (commit, ratio) in enumerate({"c": 2.0, "a": 4.0, "b": 6.0, "d": 1.0}.items(), 1):
        rows = [{"model": "mlp", "of_bound": ratio, "exact": True, "target_s": None}]
        rows += [{"model": "cnn", "of_bound": 3.0}] * (commit == "d")
        record = {"machine": {"date": f"2025-01-0{day}", "commit": commit * 40}, "rows": rows}
        folder = tmp_path / "history" / commit  # whose names are in another order
        folder.mkdir(parents=True)
        (folder / "updates.json").write_text(json.dumps(record))
    script = ROOT / "benchmarks" / "trend.py"
    words = [sys.executable, script, tmp_path / "history", "--out", tmp_path / "page.md"]
    subprocess.run(words, check=True)
    lines = (tmp_path / "page.md").read_text().splitlines()
    assert "## updates" in lines
    assert "2025-01-01 cccccccc | 2025-01-02 aaaaaaaa | 2025-01-03 bbbbbbbb | 2025" in lines[4]
    assert "| mlp | of_bound | 2 | 4 | 6 | 1 | 0.25 |" in lines
    assert "| cnn | of_bound |  |  |  | 3 |  |" in lines
    assert not [line for line in lines if "exact" in line or "target_s" in line]
