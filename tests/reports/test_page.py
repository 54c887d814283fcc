"""A report replaces its tables in a page and nothing else."""

from __future__ import annotations

import pytest

from fl.errors import ConfigError
from fl.reports.page import replace_tables


def test_what_stands_between_the_marks_is_replaced_and_the_rest_stays(tmp_path):
    page = tmp_path / "README.md"
    page.write_text("words\n<!-- report begins -->\nold\n<!-- report ends -->\nmore words\n")
    for _ in range(2):
        replace_tables(page, "| new |")
        assert page.read_text() == (
            "words\n<!-- report begins -->\n\n| new |\n\n<!-- report ends -->\nmore words\n"
        )


@pytest.mark.parametrize("text", ["no marks\n", "<!-- report begins -->\nand no end\n"])
def test_a_page_without_both_marks_is_refused_and_left_alone(tmp_path, text):
    page = tmp_path / "README.md"
    page.write_text(text)
    with pytest.raises(ConfigError, match="has no lines"):
        replace_tables(page, "tables")
    assert page.read_text() == text
