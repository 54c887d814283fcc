"""ClientApps and requests for the tests of executors.

A module of its own, so that a Ray actor imports it by name as it would import anybody's app.
"""

import logging
import os
import random
import sys
import threading
import time
from collections.abc import Callable
from datetime import date, datetime
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.logger import log

from fl.execution.contract import Payload, Request, RunInfo
from fl.flower.payload import payload_bytes
from fl.randomness import SEED_KEY

RUN = RunInfo(seed=0, num_partitions=10, run_config={SEED_KEY: 0})


def payload(what: str = "", values: int = 3) -> Payload:
    content = RecordDict(
        {
            "arrays": ArrayRecord({"w": Array(np.arange(values, dtype=np.float32))}),
            "config": ConfigRecord({"what": what}),
        }
    )
    return Payload(content, payload_bytes(content))


def requests(sent: Payload, clients: range, dispatch: int = 0) -> list[Request]:
    return [Request(client, dispatch, sent, "train", "", 60.0) for client in clients]


def reply(message: Message, **metrics: Any) -> Message:
    drawn = np.float32(random.random())
    content = RecordDict(
        {
            "arrays": ArrayRecord({"w": Array(message.content["arrays"]["w"].numpy() + drawn)}),
            "metrics": MetricRecord({"num-examples": 10, **metrics}),
        }
    )
    return Message(content, reply_to=message)


class Connection:
    """Something that an app might put into a reply, and that no other process can receive."""

    def __reduce__(self) -> Any:
        raise RuntimeError("cannot be pickled")


def behave(message: Message, context: Context) -> Message:
    """Does what the message says: "4:raise 5:exit" makes clients 4 and 5 misbehave."""
    asked = dict(part.split(":") for part in message.content["config"]["what"].split())
    match asked.get(str(context.node_config["partition-id"])):
        case "raise":
            raise ValueError("bad")
        case "exit":
            raise SystemExit(3)
        case "kill":
            os._exit(3)
        case "hang":
            threading.Event().wait()  # until its process is killed
        case "sleep":
            time.sleep(50.0)
        case "nothing":
            return None
        case "connection":
            answer = reply(message)
            answer.content.__dict__["_data"]["socket"] = Connection()  # past Flower's own checks
            return answer
        case "say":
            print("loading", flush=True)
            print("\r10 %\r100 %", end="")
            log(logging.INFO, "by Flower's logger")
            print("late", file=sys.stderr)
        case "clock":
            began = datetime.now().timestamp(), time.perf_counter(), time.time_ns()
            random.seed(time.strftime("%c"))
            time.sleep(random.random())
            shown = [*began, time.monotonic(), message.metadata.created_at, date.today().day]
            return reply(message, shown=[float(x) for x in shown])
        case "many":
            return reply(message, history=[0.5] * 100_000)
    return reply(message)


def app_of(train: Callable[[Message, Context], Any]) -> ClientApp:
    app = ClientApp()
    app.train()(train)
    return app


def make_behaving() -> ClientApp:
    return app_of(behave)


def make_in_process_only(process: int) -> ClientApp:
    if os.getpid() != process:
        raise RuntimeError("no licence on this machine")
    return make_behaving()
