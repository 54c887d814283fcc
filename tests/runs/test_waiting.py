"""What is said while there is nothing to see."""

import io
from contextlib import redirect_stderr

import pytest

from fl.runs.waiting import telling


class Terminal(io.StringIO):
    """Standard error of somebody who looks at it."""

    def isatty(self) -> bool:
        return True


def test_a_terminal_is_told_and_the_line_taken_back_whatever_happens():
    def interrupted():
        with telling("starting Ray"):
            assert terminal.getvalue() == "fl: starting Ray ...\r"
            raise KeyboardInterrupt

    with redirect_stderr(Terminal()) as terminal, pytest.raises(KeyboardInterrupt):
        interrupted()
    assert terminal.getvalue() == "fl: starting Ray ...\r\r\x1b[2K"


def test_files_and_pipes_are_not_told(capsys):
    with telling("starting Ray"):
        pass
    assert capsys.readouterr() == ("", "")


def test_a_command_says_that_it_loads_before_it_says_what_is_wrong(call):
    with redirect_stderr(Terminal()) as terminal, pytest.raises(SystemExit):
        call("executor=serial", "strategy.fraction_train=2.0", "num_clients=8")
    told, _, said = terminal.getvalue().partition("\r\x1b[2K")
    assert told.startswith("fl: loading ")
    assert "strategy.fraction_train" in said
