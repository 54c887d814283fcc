"""A page whose tables a report writes, and whose words people write."""

from __future__ import annotations

from pathlib import Path

from fl.errors import ConfigError

BEGIN, END = "<!-- report begins -->\n", "<!-- report ends -->\n"


def replace_tables(page: Path, text: str) -> None:
    """Puts the tables between the marks of a page, and prints which page that was.

    Args:
        page: a text file with a line `BEGIN` and, after it, a line `END`.
        text: takes the place of what is between them.

    Raises:
        ConfigError: the page has no such lines.
    """
    before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, found, after = rest.partition(END)
    if not found:
        raise ConfigError(f"{page} has no lines '{BEGIN.strip()}' and '{END.strip()}'")
    page.write_text(f"{before}{BEGIN}\n{text}\n\n{END}{after}", encoding="utf-8")
    print(f"the tables of {page} are written anew")
