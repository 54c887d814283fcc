"""`fl init DIR`: a small project with parts of its own, which runs at once."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

from fl.errors import ConfigError
from fl.randomness import generator
from fl.runs.usage import CommandParser

_TEMPLATE = ".txt"  # which the files end in, so that nobody takes them for parts of fl
_ROWS, _SITES = 600, 12

LINES = (
    ("fl -cd conf +experiment=machines fleet=cross_silo executor=serial", "simulates it"),
    (
        "fl -m -cd conf +experiment=machines strategy=fedavg,heavy_ball seed=0,1 fleet=uniform "
        "executor=serial hydra.sweep.dir=multirun/first",
        "compares",
    ),
    ("fl report multirun/first", "makes a page of the comparison"),
    ("python -m unittest", "tests mine.py"),
)
"""What can be typed in the folder, and what it does."""


def main(words: Sequence[str]) -> None:
    """Makes the project that `fl init DIR` asks for, and says what to do with it.

    Raises:
        ConfigError: there is no place for it.
    """
    parser = CommandParser(
        prog="fl init",
        description="Makes a project in DIR, a new or empty folder, with data, a model, a method "
        "and a test of its own; it runs at once, and is a Flower app too.",
    )
    parser.add_argument("directory", metavar="DIR", help="folder of the project")
    place = Path(parser.parse_args(words).directory).expanduser()
    make(place)
    print(f"{place} has a project; mine.py is where your own parts go. In that folder:\n")
    for line, what in LINES:
        print(f"  {line}    # {what}")


def make(place: Path) -> None:
    """Writes a project.

    Args:
        place: a folder that does not exist, or is empty.

    Raises:
        ConfigError: it is neither, or cannot be written.
    """
    if place.exists() and (not place.is_dir() or any(place.iterdir())):
        raise ConfigError(f"{place} is there already, and not empty: give fl init a new folder")
    name = re.sub(r"[^a-z0-9]+", "-", place.absolute().name.lower()).strip("-") or "project"
    words = {"NAME": name, "LINES": "\n".join(f"{line}    # {what}" for line, what in LINES)}
    try:
        place.mkdir(parents=True, exist_ok=True)
        _copy(files(__name__).joinpath("files"), place, words)
        _write_table(place / "machines.csv")
    except OSError as error:
        raise ConfigError(f"{place} cannot be written: {error.strerror}") from error


def _copy(source: Traversable, place: Path, words: dict[str, str]) -> None:
    for entry in source.iterdir():
        if entry.is_dir():
            (place / entry.name).mkdir()
            _copy(entry, place / entry.name, words)
        elif entry.name.endswith(_TEMPLATE):
            text = entry.read_text("utf-8")
            for word, instead in words.items():
                text = text.replace(word, instead)
            (place / entry.name.removesuffix(_TEMPLATE)).write_text(text, "utf-8")


def _write_table(path: Path) -> None:
    """Writes a table in which presses, heat, vibration and load wear machines out."""
    rng = generator(0, "machines")
    kinds = ("fan", "press", "pump")
    rows = []
    for _ in range(_ROWS):
        site, kind = int(rng.integers(_SITES)), kinds[rng.integers(3)]
        temperature, vibration = rng.normal(60 + site / 2, 5), rng.gamma(2.0, 1.0)
        load, noise = rng.uniform(0, 100), rng.normal(0, 0.3)
        wear = (temperature - 63) / 5 + vibration - 2 + (load - 50) / 40 + noise
        failed = int(wear + (kind == "press") > 0.3)
        row = (f"site{site}", kind, f"{temperature:.1f}", f"{vibration:.2f}", f"{load:.0f}", failed)
        rows.append(row)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["site", "kind", "temperature", "vibration", "load", "failed"])
        writer.writerows(rows)
