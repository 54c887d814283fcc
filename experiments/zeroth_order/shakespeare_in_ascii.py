"""Shakespeare in the vocabulary of `data=stdlib`, so that one model takes both."""

from __future__ import annotations

import os
from pathlib import Path

from fl.data import Source
from fl.data.text import ASCII_VOCABULARY, corpus, speeches


def load(window: int = 32) -> Source:
    """Returns the speeches of FL_DATA_DIR/tinyshakespeare/input.txt; see `load_shakespeare`."""
    path = Path(os.environ["FL_DATA_DIR"]) / "tinyshakespeare" / "input.txt"
    said = speeches(path.read_text(encoding="utf-8"))
    return corpus("shakespeare in ASCII", said, ASCII_VOCABULARY, window)
