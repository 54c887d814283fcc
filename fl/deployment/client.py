"""The ClientApp of a deployment: the client that `fl` simulates, on a SuperNode."""

from __future__ import annotations

from functools import lru_cache

from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fl.clients import PartialApp, StageApp, TaskApp, TrainingApp
from fl.deployment.calibrating import TIME, answer
from fl.deployment.nodes import WHO, client_of_node, threads_of_node
from fl.deployment.settings import Own, compose_experiment, read_settings
from fl.flower.private import copied, give_id, message_of
from fl.randomness import SEED_KEY
from fl.runs.build import build
from fl.runs.experiment import app_of
from fl.vectors.threads import limit_threads


class DeployedApp(ClientApp):
    """Answers as the client that its SuperNode is, in the experiment that the run asks for.

    The client is `node_config["partition-id"]`, of "num-partitions", which must be the experiment's
    num_clients. What the client draws, it draws from the streams of the simulator, since a message
    carries the name it would have there as its group id (`fl.deployment.DeployedGrid`). So with
    `node_config["threads"]` 1, as in the simulator's workers, equal messages bring equal replies.

    Args:
        own: parts of the app's own; None: there are none.
    """

    def __init__(self, own: Own | None = None) -> None:
        super().__init__()
        self._own = own

    def __call__(self, message: Message, context: Context) -> Message:
        """Returns the reply to a message.

        Raises:
            ConfigError: the node or the run is not configured as it must be.
        """
        overrides = read_settings(context.run_config).overrides
        seed, num_clients, app = _client(overrides, self._own)
        client = client_of_node(context.node_config, num_clients)
        if message.metadata.message_type == WHO:
            who = MetricRecord({"partition-id": client})
            return Message(RecordDict({"metrics": who}), reply_to=message)
        if message.metadata.message_type == TIME:
            return Message(RecordDict({"metrics": answer(message)}), reply_to=message)
        named = message_of(copied(message.metadata), content=message.content)
        give_id(named, message.metadata.group_id)
        # The state is the same object: what the app keeps, the SuperNode keeps.
        own = Context(
            context.run_id,
            context.node_id,
            context.node_config,
            context.state,
            {**context.run_config, SEED_KEY: seed},
        )
        threads = threads_of_node(context.node_config)
        if threads is None:
            reply = app(named, own)
        else:
            with limit_threads(threads):
                reply = app(named, own)
        return Message(reply.content, reply_to=message)


def prepare(overrides: tuple[str, ...]) -> None:
    """Makes the client of an experiment, as the first message does."""
    _client(overrides, None)


@lru_cache(maxsize=1)
def _client(
    overrides: tuple[str, ...], own: Own | None
) -> tuple[int, int, TrainingApp | TaskApp | PartialApp | StageApp]:
    """Returns seed, number of clients, and the simulator's ClientApp."""
    config = compose_experiment(overrides, own)
    return config.seed, config.num_clients, app_of(build(config))


app = DeployedApp()
