"""The numbers that a page's tables are made of: PAGE/results.parquet.

A record is a run, or an evaluation of one, or whatever else a script has measured: names to numbers
and words. A page's script measures and keeps records, and makes its tables from those that are kept
(`tables`), so that a reader can check any number; tests/test_results.py makes all tables again.

    python experiments/results.py PAGE      prints the records of a page, each in JSON
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from fl.reports.atomic import replacing
from fl.reports.page import replace_tables

FILE = "results.parquet"

Record = Mapping[str, Any]


def keep(page: Path, records: Sequence[Record]) -> None:
    """Writes a page's records.

    Args:
        page: its folder.
        records: texts, numbers and truth values, each name of one type; a name that a record lacks
            is null there.
    """
    names = dict.fromkeys(name for record in records for name in record)
    columns = {name: [record.get(name) for record in records] for name in names}
    with replacing(page / FILE) as temporary:  # a script may be killed between two runs
        parquet.write_table(pa.table(columns), temporary, compression="zstd")


def kept(page: Path) -> list[dict[str, Any]]:
    """Returns a page's records, without what is null, in the order in which they were kept."""
    rows = parquet.read_table(page / FILE).to_pylist()
    return [{name: v for name, v in row.items() if v is not None} for row in rows]


def main(
    script: str,
    measure: Callable[[], Sequence[Record]],
    tables: Callable[[list[dict[str, Any]]], str],
) -> None:
    """Runs a page's script: measures and keeps, but for `tables` on the command line; then writes.

    Args:
        script: its file, in the folder of the page.
        measure: returns records.
        tables: returns what stands between the marks of the page, made of records.
    """
    page = Path(script).parent
    if sys.argv[1:] != ["tables"]:
        keep(page, measure())
    replace_tables(page / "README.md", tables(kept(page)))


if __name__ == "__main__":
    for record in kept(Path(sys.argv[1])):
        print(json.dumps(record))
