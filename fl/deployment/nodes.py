"""Who is who on a deployment: which SuperNode is which client."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flwr.common.constant import NUM_PARTITIONS_KEY, PARTITION_ID_KEY

from fl.errors import ConfigError

WHO = "query.client"
"""Type of the message that asks a node which client it is."""


def client_of_node(node_config: Mapping[str, Any], num_clients: int) -> int:
    """Returns the client that a SuperNode is, from its `--node-config`.

    Args:
        node_config: with "partition-id" and "num-partitions".
        num_clients: of the experiment.

    Raises:
        ConfigError: one of the two is missing, is not a whole number, or does not fit.
    """
    number, count = (_whole(node_config, key) for key in (PARTITION_ID_KEY, NUM_PARTITIONS_KEY))
    if count != num_clients:
        raise ConfigError(
            f"this SuperNode was started with num-partitions={count}, and the experiment has "
            f"num_clients={num_clients}: make them equal"
        )
    if number >= count:
        raise ConfigError(
            f"this SuperNode was started with partition-id={number} and num-partitions={count}: "
            "the first partition is 0, the last num-partitions - 1"
        )
    return number


def _whole(node_config: Mapping[str, Any], key: str) -> int:
    value = node_config.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ConfigError(
            f"node_config['{key}'] is {value!r}; it must be a whole number, at least 0: start the "
            'SuperNode with --node-config "partition-id=0 num-partitions=3"'
        )
    return value


def threads_of_node(node_config: Mapping[str, Any]) -> int | None:
    """Returns how many threads a SuperNode's training may use; None for torch's own choice.

    Raises:
        ConfigError: "threads" is not a positive whole number.
    """
    if "threads" not in node_config:
        return None
    threads = _whole(node_config, "threads")
    if threads == 0:
        raise ConfigError("node_config['threads'] is 0; it must be at least 1, or left out")
    return threads
