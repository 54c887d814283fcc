"""Several clients of one app at once, told by messages and contexts as one client is."""

from collections.abc import Hashable, Sequence

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fl.execution.contract import Payload, Request, RunInfo
from fl.randomness import SEED_KEY


def request_of(message: Message, context: Context) -> Request:
    client, dispatch = message.metadata.message_id.split(".")
    assert context.node_config["partition-id"] == int(client)
    sent = message.metadata
    return Request(
        int(client),
        int(dispatch),
        Payload(message.content),
        sent.message_type,
        sent.group_id,
        sent.ttl,
        state=context.state or None,
    )


def run_of(context: Context) -> RunInfo:
    partitions = int(context.node_config["num-partitions"])
    return RunInfo(context.run_config[SEED_KEY], partitions, context.run_config)


def batch_key(app: ClientApp, message: Message, context: Context) -> Hashable | None:
    return app.batch_key(request_of(message, context), run_of(context))


def why_alone(app: ClientApp, message: Message, context: Context) -> str | None:
    return app.why_alone(request_of(message, context))


def train_many(
    app: ClientApp, messages: Sequence[Message], contexts: Sequence[Context]
) -> list[Message]:
    """Returns the replies; the contexts get what the clients keep."""
    if not messages:
        return []
    requests = [request_of(*each) for each in zip(messages, contexts, strict=True)]
    results = app.train_many(requests, run_of(contexts[0]))
    for context, result in zip(contexts, results, strict=True):
        context.state = result.state or RecordDict()
    return [
        Message(result.content, reply_to=message)
        for message, result in zip(messages, results, strict=True)
    ]
