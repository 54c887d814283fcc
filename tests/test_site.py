"""The documentation site is built, and no link or anchor in it leads nowhere."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fl.runs.groups import groups
from fl.runs.usage import GROUPS

ROOT = Path(__file__).parents[1]


@pytest.mark.slow  # half a minute; `make docs` builds it every night
def test_the_site_is_built_without_a_warning_and_has_a_page_for_every_member(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    for top in GROUPS:
        for group, names in groups(top):
            pages = [tmp_path / "methods" / group / name / "index.html" for name in names]
            assert [page for page in pages if not page.is_file()] == []
    for name, said in (
        ("commands", "fl report"),
        ("keys", "evaluate_every"),
        ("files", "upload_lost"),
    ):
        assert said in (tmp_path / "reference" / name / "index.html").read_text("utf-8")
    assert (tmp_path / "docs" / "glossary" / "index.html").is_file()
