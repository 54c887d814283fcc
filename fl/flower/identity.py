"""Who is who: node ids, message ids, and the identity Flower expects of a process.

`flwr.app.Message` reads ids from process-wide state that Flower's own runtimes set.
"""

from __future__ import annotations

from flwr.common.constant import SUPERLINK_NODE_ID

from fl.flower.private import set_identity

RUN_ID = 1
FIRST_NODE_ID = SUPERLINK_NODE_ID + 1


def node_id(client: int) -> int:
    """Returns the Flower node id of a client; deterministic, unlike a deployment's random ids."""
    return FIRST_NODE_ID + client


def client_of(node: int) -> int:
    """Returns the client that has a Flower node id."""
    return node - FIRST_NODE_ID


def message_id(client: int, dispatch: int) -> str:
    """Returns the id of the `dispatch`-th message to a client: also the name of its streams."""
    return f"{client}.{dispatch}"


def assume_identity(node: int = SUPERLINK_NODE_ID) -> None:
    """Makes this process the given Flower node, so that `Message(...)` can be constructed."""
    set_identity(run_id=RUN_ID, node_id=node)
