"""What goes over a shaped link arrives, and not before it can."""

from __future__ import annotations

import socket
import threading
import time

import pytest

from fl.deployment.shaped_link import Shape, ShapedLink
from fl.errors import ConfigError


@pytest.fixture
def echo():
    """The port of a server that sends back all that it was sent, once it has all."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve():
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    connection.sendall(all_of(connection))

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)


def all_of(connection):
    return b"".join(iter(lambda: connection.recv(65536), b""))


def sent_over(port, data):
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        return all_of(connection)


@pytest.mark.parametrize("loss", [0.0, 0.5])
def test_all_bytes_arrive_in_order_and_not_sooner_than_the_link_lets_them(echo, loss):
    shape = Shape(rate_bps=8e6, delay_s=0.05, loss=loss, queue_bytes=2**15)
    data = bytes(range(256)) * 400
    with ShapedLink(echo, shape) as link:
        began = time.monotonic()
        assert sent_over(link.port, data) == data
        took = time.monotonic() - began
    # 102,400 bytes at a megabyte a second and a delay of 0.05 s, there and back.
    assert took >= 2 * (0.1024 + 0.05)


def test_a_connection_is_made_in_a_round_trip(echo):
    with ShapedLink(echo, Shape(rate_bps=1e9, delay_s=0.05)) as link:
        began = time.monotonic()
        assert sent_over(link.port, b"x") == b"x"
        assert time.monotonic() - began >= 4 * 0.05


def test_connections_share_the_rate(echo):
    data = bytes(50_000)
    with ShapedLink(echo, Shape(rate_bps=4e6)) as link:
        began = time.monotonic()
        threads = [threading.Thread(target=sent_over, args=(link.port, data)) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert time.monotonic() - began >= 3 * 0.1  # for what all of them send


def test_a_link_to_nobody_is_closed_at_once():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with ShapedLink(port, Shape(rate_bps=1e6)) as link:
        assert sent_over(link.port, b"") == b""


@pytest.mark.parametrize(
    ("name", "value"), [("rate_bps", 0), ("delay_s", -1), ("loss", 1.0), ("queue_bytes", 10)]
)
def test_a_shape_out_of_range_is_refused_by_name(name, value):
    with pytest.raises(ConfigError, match=f"^{name} is {value}"):
        Shape(**{"rate_bps": 1e6, name: value})
