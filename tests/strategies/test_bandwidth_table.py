"""Streaming DiLoCo's table of bandwidths follows from a model of layers with nothing fitted."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "experiments" / "diloco" / "utilisation.py"


@pytest.mark.parametrize("size", ["1B", pytest.param("100B", marks=pytest.mark.slow)])
def test_all_published_bandwidths_are_within_a_step_of_the_sweep_and_most_equal(size, monkeypatch):
    spec = importlib.util.spec_from_file_location("utilisation", SCRIPT)
    model = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "utilisation", model)
    spec.loader.exec_module(model)
    apart = [
        model.steps_apart(ours, published)
        for (of, name), row in model.PUBLISHED.items()
        if of == size
        for ours, published in zip(
            model.table(model.SIZES[of], model.METHODS[name]), row, strict=True
        )
    ]
    assert len(apart) == 25
    assert max(map(abs, apart)) == 1
    assert sum(step == 0 for step in apart) == {"1B": 23, "100B": 20}[size]  # 43 of 50
