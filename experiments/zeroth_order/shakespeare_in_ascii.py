"""Shakespeare in the vocabulary of `data=stdlib`, so that one model takes both, and fewer tests."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from fl.data import Examples, Source
from fl.data.text import ASCII_VOCABULARY, corpus, speeches


def load(window: int = 32) -> Source:
    """Returns the speeches of `load_shakespeare`, and every fourth of its windows to test on."""
    path = Path(os.environ["FL_DATA_DIR"]) / "tinyshakespeare" / "input.txt"
    said = speeches(path.read_text(encoding="utf-8"))
    source = corpus("shakespeare in ASCII", said, ASCII_VOCABULARY, window)
    test = Examples(source.test.x[::4], source.test.y[::4])
    return replace(source, test=test, natural_test=None)
