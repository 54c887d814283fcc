"""When SimGrid says that transfers end: JSON from standard input, to standard output.

Run by `flows.py` under a Python that has `simgrid`.
"""

from __future__ import annotations

import json
import sys
from multiprocessing import Process, SimpleQueue
from tempfile import NamedTemporaryFile
from typing import Any


def ends_of(scenario: dict[str, Any], answer: SimpleQueue[list[float]]) -> None:
    """Puts when each flow of a scenario ends, s."""
    from simgrid import Actor, Engine, Host, Mailbox, this_actor

    options = {
        "network/model": "CM02",  # links and sharing as they are stated, without factors
        "network/crosstraffic": "0",
        "network/TCP-gamma": str(scenario["window_bytes"]),
        "network/loopback-bw": "1e12",
    }
    engine = Engine(["fidelity", "--log=root.thresh:critical"])
    for key, value in options.items():
        Engine.set_config(f"{key}:{value}")
    with NamedTemporaryFile("w", suffix=".xml") as file:
        file.write(scenario["platform"])
        file.flush()
        engine.load_platform(file.name)
    ends = [-1.0] * len(scenario["flows"])

    def send(k: int, size: float, start: float) -> None:
        this_actor.sleep_until(start)
        Mailbox.by_name(str(k)).put("payload", round(size))

    def receive(k: int) -> None:
        Mailbox.by_name(str(k)).get()
        ends[k] = Engine.clock

    for k, (source, target, size, start) in enumerate(scenario["flows"]):
        Actor.create(f"receiver {k}", Host.by_name(target), receive, k)
        Actor.create(f"sender {k}", Host.by_name(source), send, k, size, start)
    engine.run()
    answer.put(ends)


def main() -> None:
    """Answers; each scenario has a process of its own, as SimGrid keeps its platform."""
    found = []
    for scenario in json.load(sys.stdin):
        answer: SimpleQueue[list[float]] = SimpleQueue()
        process = Process(target=ends_of, args=(scenario, answer))
        process.start()
        process.join(timeout=60)
        if process.exitcode != 0:
            process.kill()
            raise SystemExit(f"SimGrid does not run {scenario['name']}: {process.exitcode}")
        found.append(answer.get())
    from simgrid import simgrid_version

    json.dump({"version": str(simgrid_version), "ends": found}, sys.stdout)


if __name__ == "__main__":
    main()
