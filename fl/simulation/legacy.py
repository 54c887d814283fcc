"""Apps of Flower's older kind: `server_fn`, `NumPyClient`, strategies of `flwr.server.strategy`.

Their server sends each client's message from a thread of its own and waits there, which has no
meaning in virtual time: the first thread to wait would finish its client before the second has
sent. Inside `concurrent_rounds`, a round is one `send_and_receive`, with all its clients in flight
at once, and waiting for clients lets virtual time pass until they come. The conversions between the
two kinds of messages are Flower's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from flwr.app import Message, MessageType, RecordDict
from flwr.common import Code
from flwr.server import ClientManager

from fl.flower.private import older_conversions, older_server
from fl.simulation.grid import SimGrid


@contextmanager
def concurrent_rounds(grid: SimGrid) -> Iterator[None]:
    """Replaces the functions of Flower's legacy server that start threads, or wait for one."""
    conversions = older_conversions()

    def fit_clients(
        client_instructions: Any, max_workers: Any, timeout: float | None, group_id: int
    ) -> Any:
        return _exchange(
            grid,
            client_instructions,
            lambda ins: conversions.fitins_to_recorddict(ins, keep_input=True),
            lambda content: conversions.recorddict_to_fitres(content, keep_input=False),
            MessageType.TRAIN,
            timeout,
            group_id,
        )

    def evaluate_clients(
        client_instructions: Any, max_workers: Any, timeout: float | None, group_id: int
    ) -> Any:
        return _exchange(
            grid,
            client_instructions,
            lambda ins: conversions.evaluateins_to_recorddict(ins, keep_input=True),
            conversions.recorddict_to_evaluateres,
            MessageType.EVALUATE,
            timeout,
            group_id,
        )

    def wait_for(manager: ClientManager, num_clients: int, timeout: int = 86400) -> bool:
        deadline = grid.clock.now() + timeout
        while manager.num_available() < num_clients:  # asks the grid
            if grid.clock.now() >= deadline:
                return False
            grid.sleep(1.0)
        return True

    with older_server(
        fit_clients=fit_clients, evaluate_clients=evaluate_clients, wait_for=wait_for
    ):
        yield


def _exchange(
    grid: SimGrid,
    instructions: list[tuple[Any, Any]],
    encode: Callable[[Any], RecordDict],
    decode: Callable[[RecordDict], Any],
    message_type: str,
    timeout: float | None,
    group_id: int,
) -> tuple[list[Any], list[Any]]:
    """Returns (results, failures) in the order of arrival; a client that is late is a failure."""
    # Flower gives a cohort one instruction object: encode it once, so that it is one broadcast.
    encoded: dict[int, RecordDict] = {}
    proxies = {}
    messages = []
    for proxy, ins in instructions:
        if id(ins) not in encoded:
            encoded[id(ins)] = encode(ins)
        proxies[proxy.node_id] = proxy
        messages.append(
            Message(
                encoded[id(ins)],
                proxy.node_id,
                message_type,
                ttl=timeout,
                group_id=str(group_id),
            )
        )
    results: list[Any] = []
    failures: list[Any] = []
    missing = dict(proxies)
    for reply in grid.send_and_receive(messages, timeout=timeout):
        node = int(reply.metadata.src_node_id)
        missing.pop(node, None)  # an app may send a client two instructions
        if reply.has_error():
            failures.append(ValueError(f"node {node} replied with an error: {reply.error.reason}"))
            continue
        result = (proxies[node], decode(reply.content))
        (results if result[1].status.code == Code.OK else failures).append(result)
    failures += [TimeoutError(f"no reply from node {node}") for node in missing]
    return results, failures
