"""The notebooks run from their first cell to their last, and are stored without outputs."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

NOTEBOOKS = sorted(Path(__file__).parents[1].glob("examples/notebooks/*.ipynb"))


@pytest.fixture
def main_module(monkeypatch) -> ModuleType:
    """A module that is called as a notebook's is, where `_target_=__main__.NAME` finds classes."""
    module = ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", module)
    return module


def code_cells(notebook: Path) -> list[dict[str, object]]:
    cells = json.loads(notebook.read_text("utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_cells_run_in_their_order(notebook, main_module, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for i, cell in enumerate(code_cells(notebook)):
        exec(compile("".join(cell["source"]), f"{notebook.name}:{i}", "exec"), vars(main_module))
    assert not [*tmp_path.iterdir()]  # nothing is written that nobody has asked for


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_no_output_is_stored(notebook):
    for cell in code_cells(notebook):
        assert (cell["outputs"], cell["execution_count"]) == ([], None)
