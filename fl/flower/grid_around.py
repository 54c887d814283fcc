"""A Flower grid that stands in front of another."""

from __future__ import annotations

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from fl.flower.private import Run


class GridAround(Grid):
    """Passes on what does not send or receive.

    Args:
        grid: the other.
    """

    def __init__(self, grid: Grid) -> None:
        self.grid = grid

    def set_run(self, run: Run) -> None:
        """Passes the run on."""
        self.grid.set_run(run)

    @property
    def run(self) -> Run:
        """Information on the run."""
        return self.grid.run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Returns a new message; deprecated by Flower in favour of `Message(...)`."""
        return self.grid.create_message(content, message_type, dst_node_id, group_id, ttl)
