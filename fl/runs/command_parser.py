"""Reads the words after `fl COMMAND`, and refuses as everything else does."""

from __future__ import annotations

import argparse
from typing import NoReturn

from fl.errors import ConfigError


class CommandParser(argparse.ArgumentParser):
    """Raises what is wrong instead of ending the process."""

    def error(self, message: str) -> NoReturn:
        """Raises ConfigError."""
        usage = " ".join(self.format_usage().split())
        raise ConfigError(f"{message}; {usage} (see {self.prog} --help)")
