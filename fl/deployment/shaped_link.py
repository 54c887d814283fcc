"""Links of a rate, a delay, losses and a queue, between processes of this machine.

A proxy in user space: what it takes in, it gives on later. It needs no rights and no kernel module,
and works on what TCP delivers, not on packets: the kernel's windows and handshakes on both sides of
it are those of loopback. So a lost piece is one that comes a retransmission later, with all behind
it; and what comes first over a connection waits for the round trip in which it would be made.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from fl.checks import at_least, not_negative, positive, share
from fl.randomness import generator

_PIECE = 16 * 1024  # bytes that are delayed, or lost, together
_RETRANSMITTED_S = 0.2  # the least time after which TCP sends again, beside a round trip


@dataclass(frozen=True)
class Shape:
    """What a link is like, in each direction.

    Attributes:
        rate_bps: bit/s that all connections share.
        delay_s: one-way.
        loss: probability that a piece of 16 KiB is lost and sent again.
        queue_bytes: taken in and not given on yet, beyond which a sender has to wait.

    Raises:
        ConfigError: a number is out of its range.
    """

    rate_bps: float
    delay_s: float = 0.0
    loss: float = 0.0
    queue_bytes: int = 2**18

    def __post_init__(self) -> None:
        positive("rate_bps", self.rate_bps)
        not_negative("delay_s", self.delay_s)
        share("loss", self.loss)
        at_least("queue_bytes", self.queue_bytes, _PIECE)


class _Direction:
    """One way of the link, on which pieces follow each other."""

    def __init__(self, shape: Shape, seed: int, name: str) -> None:
        self._shape = shape
        self._draws = generator(seed, "shaped link", name)
        self._free_s = 0.0  # when the last piece so far has left
        self._queued = 0
        self._room = asyncio.Condition()

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carries a connection's bytes, until its sender has no more."""
        pieces: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
        giving = asyncio.create_task(self._give(pieces, writer))
        try:
            while piece := await reader.read(_PIECE):
                async with self._room:
                    await self._room.wait_for(lambda: self._queued < self._shape.queue_bytes)
                    self._queued += len(piece)
                pieces.put_nowait((self._arrives(len(piece)), piece))
        except ConnectionError:
            pass
        finally:
            pieces.put_nowait((0.0, b""))
            try:
                with suppress(ConnectionError):
                    await giving
            finally:
                giving.cancel()
            with suppress(ConnectionError, OSError):
                writer.write_eof()

    def _arrives(self, size: int) -> float:
        """Returns when a piece is at the other end, by the loop's clock, s."""
        shape = self._shape
        now = asyncio.get_running_loop().time()
        self._free_s = max(now, self._free_s) + 8 * size / shape.rate_bps
        if shape.loss and self._draws.random() < shape.loss:
            self._free_s += _RETRANSMITTED_S + 2 * shape.delay_s
        return self._free_s + shape.delay_s

    async def _give(
        self, pieces: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter
    ) -> None:
        while True:
            arrives, piece = await pieces.get()
            if not piece:
                return
            await asyncio.sleep(arrives - asyncio.get_running_loop().time())
            async with self._room:
                self._queued -= len(piece)
                self._room.notify_all()
            writer.write(piece)
            await writer.drain()


class ShapedLink:
    """A port of this machine that leads to another, over a link; while the block is entered.

    Args:
        port: to which it leads.
        shape: of the link, in each direction.
        seed: of what is lost.

    Attributes:
        port: from which it leads.
    """

    def __init__(self, port: int, shape: Shape, seed: int = 0) -> None:
        self._to = port
        self._shape = shape
        self._seed = seed
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self.port = 0

    def __enter__(self) -> ShapedLink:
        """Begins to listen."""
        self._thread.start()
        self._do(self._listen())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Closes all connections."""
        self._do(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _do(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _listen(self) -> None:
        self._up = _Direction(self._shape, self._seed, "up")
        self._down = _Direction(self._shape, self._seed, "down")
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.port = int(self._server.sockets[0].getsockname()[1])

    async def _close(self) -> None:
        if self._server is not None:
            self._server.close()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._join(reader, writer))
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            from_there, there = await asyncio.open_connection("127.0.0.1", self._to)
        except OSError:
            writer.close()
            return
        try:
            await asyncio.sleep(2 * self._shape.delay_s)
            async with asyncio.TaskGroup() as both:  # of which none outlives the other
                both.create_task(self._up.carry(reader, there))
                both.create_task(self._down.carry(from_there, writer))
        finally:
            for each in (writer, there):
                each.close()
