"""When transfers on shared links end: ours beside SimGrid's, flow by flow.

    python benchmarks/fidelity/flows.py --simgrid /usr/bin/python3 [--record FILE]

Every scenario is a platform XML, flows from host to host, and a TCP window. SimGrid runs it in its
model CM02, without factors, in which flows get shares of a full link by 1 / latency and at most
window / (2 latency). Ours reads the same XML, and has the same two as options.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from fl.simulation.kernel.routes import Cable
from fl.simulation.kernel.shared_network import SharedNetwork
from fl.simulation.world.networks.platform import PlatformReader

HEAD = (
    "<?xml version='1.0'?><!DOCTYPE platform SYSTEM 'https://simgrid.org/simgrid.dtd'>"
    "<platform version='4.1'><zone id='world' routing='Full'>"
)
Flow = tuple[str, str, int, float]
"""From, to, bytes, and when it starts, s."""


def platform(links: Sequence[tuple[str, float, float, str]], routes: dict[str, list[str]]) -> str:
    """Returns a platform of hosts, links (bit/s, latency in s, policy), and routes "a b"."""
    hosts = dict.fromkeys(name for pair in routes for name in pair.split())
    text = HEAD + "".join(f"<host id='{name}' speed='1f'/>" for name in hosts)
    for name, bps, latency_s, policy in links:
        text += (
            f"<link id='{name}' bandwidth='{bps!r}bps' latency='{latency_s!r}s' "
            f"sharing_policy='{policy}'/>"
        )
    duplex = {name for name, _, _, policy in links if policy == "SPLITDUPLEX"}
    for pair, over in routes.items():
        source, target = pair.split()
        text += f"<route src='{source}' dst='{target}'>"
        for name in over:
            direction = " direction='UP'" if name in duplex else ""
            text += f"<link_ctn id='{name}'{direction}/>"
        text += "</route>"
    return text + "</zone></platform>"


def sizes(rng: random.Random, n: int) -> list[int]:
    """Returns n sizes in bytes, from 10 kB to 100 MB, log-uniform."""
    return [round(10 ** rng.uniform(4, 8)) for _ in range(n)]


def dumbbell(rng: random.Random, n: int, latency: Callable[[], float]) -> tuple[str, list[Flow]]:
    """Returns n pairs, each with links of its own on both sides of one that all cross."""
    links = [("middle", 10 ** rng.uniform(7, 9), latency(), "SPLITDUPLEX")]
    routes, flows = {}, []
    for k, size in enumerate(sizes(rng, n)):
        links += [(f"in{k}", 10 ** rng.uniform(6.5, 9), latency(), "SPLITDUPLEX")]
        links += [(f"out{k}", 10 ** rng.uniform(6.5, 9), latency(), "SPLITDUPLEX")]
        routes[f"s{k} t{k}"] = [f"in{k}", "middle", f"out{k}"]
        there = rng.random() < 0.7
        flows.append((f"s{k}" if there else f"t{k}", f"t{k}" if there else f"s{k}", size, 0.0))
    return platform(links, routes), flows


def parking_lot(rng: random.Random, n: int, latency: Callable[[], float]) -> tuple[str, list[Flow]]:
    """Returns flows over runs of the links of a chain."""
    chain = 6
    links = [(f"l{k}", 10 ** rng.uniform(7, 9), latency(), "SPLITDUPLEX") for k in range(chain)]
    routes, flows = {}, []
    for k, size in enumerate(sizes(rng, n)):
        first, last = sorted(rng.sample(range(chain + 1), 2))
        routes[f"s{k} t{k}"] = [f"l{link}" for link in range(first, last)]
        flows.append((f"s{k}", f"t{k}", size, rng.uniform(0, 2)))
    return platform(links, routes), flows


def cells(rng: random.Random, n: int, latency: Callable[[], float]) -> tuple[str, list[Flow]]:
    """Returns phones of radio cells, whose two directions share, that meet at a server's link."""
    links = [("server", 10 ** rng.uniform(7.5, 9), latency(), "SPLITDUPLEX")]
    links += [("backbone", 2e8, latency(), "FATPIPE")]
    links += [(f"cell{c}", 10 ** rng.uniform(7, 8), latency(), "SHARED") for c in range(5)]
    routes, flows = {}, []
    for k, size in enumerate(sizes(rng, n)):
        routes[f"p{k} server"] = [f"cell{k % 5}", "backbone", "server"]
        up = rng.random() < 0.5
        flows.append(
            (f"p{k}" if up else "server", "server" if up else f"p{k}", size, rng.uniform(0, 5))
        )
    return platform(links, routes), flows


def zones(rng: random.Random, n: int, latency: Callable[[], float]) -> tuple[str, list[Flow]]:
    """Returns flows within and between two clusters, one with a backbone, joined by a link."""
    text = HEAD
    for name, more in (("a", f" bb_bw='400Mbps' bb_lat='{latency()!r}s'"), ("b", "")):
        text += (
            f"<cluster id='{name}' prefix='{name}' suffix='' radical='0-9' speed='1f' bw='12.5MBps'"
            f" lat='{latency()!r}s'{more} router_id='{name}_out'/>"
        )
    text += (
        f"<link id='wan' bandwidth='100Mbps' latency='{latency()!r}s' sharing_policy='SHARED'/>"
        "<zoneRoute src='a' dst='b' gw_src='a_out' gw_dst='b_out'><link_ctn id='wan'/></zoneRoute>"
        "</zone></platform>"
    )
    hosts = [f"{name}{k}" for name in "ab" for k in range(10)]
    flows = []
    for size in sizes(rng, n):
        source, target = rng.sample(hosts, 2)
        flows.append((source, target, size, rng.uniform(0, 5)))
    return text, flows


def scenarios() -> Iterator[dict[str, Any]]:
    """Yields what both run."""
    for kind in (dumbbell, parking_lot, cells, zones):
        for n in (2, 5, 20, 50):
            for what in ("no latency", "mixed latencies", "window"):
                rng = random.Random(f"{kind.__name__} {n} {what}")

                def latency(what: str = what, rng: random.Random = rng) -> float:
                    return 0.0 if what == "no latency" else 10 ** rng.uniform(-4, -1.5)

                text, flows = kind(rng, n, latency)
                window = 262144 if what == "window" else 0
                yield {
                    "name": f"{kind.__name__}, {n} flows, {what}",
                    "platform": text,
                    "flows": flows,
                    "window_bytes": window,
                }


def ends_of(
    network: SharedNetwork,
    flows: Sequence[tuple[float, int, float, float, tuple[int, ...], float]],
) -> list[float]:
    """Returns when each flow ends, s.

    Args:
        network: without flows.
        flows: 0 to n - 1, as `SharedNetwork.add` takes them.
    """
    coming = sorted(flows, reverse=True)
    ends = [math.inf] * len(coming)
    while coming or len(network):
        now = network.next_completion()
        if coming and coming[-1][0] < now:
            network.add(*coming.pop())
            continue
        for flow in network.pop_completed(now):
            ends[flow] = now
    return ends


def ours(scenario: dict[str, Any]) -> list[float]:
    """Returns when each flow of a scenario ends, s."""
    read = PlatformReader(scenario["platform"], 1.0, 1.0).read()
    cables = read.cables

    def number(hop: int) -> int:
        return hop - hop % 2 if cables[hop // 2].sharing == "both" else hop

    bps = [rate for cable in cables for rate in (cable.down_bps, cable.up_bps)]
    network = SharedNetwork(bps)
    coming = []
    for k, (source, target, size, start) in enumerate(scenario["flows"]):
        hops = read.route(source, target)
        crossed: list[Cable] = [cables[hop // 2] for hop in hops]
        delay = sum(cable.latency_s for cable in crossed)
        cap = min((c.down_bps for c in crossed if c.sharing == "each"), default=math.inf)
        if scenario["window_bytes"] and delay > 0:
            cap = min(cap, 8 * scenario["window_bytes"] / (2 * delay))
        shared = [number(hop) for hop in hops if cables[hop // 2].sharing != "each"]
        weight = 1 / delay if delay > 0 else 1.0
        coming.append((start + delay, k, 8.0 * size, cap, tuple(dict.fromkeys(shared)), weight))
    return ends_of(network, coming)


def simgrid(python: str, asked: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Returns SimGrid's version, and its ends of the flows of each scenario."""
    script = Path(__file__).with_name("simgrid_flows.py")
    done = subprocess.run(
        [python, str(script)], input=json.dumps(asked), capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def main() -> None:
    """Runs both, and prints the errors."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--simgrid", default="python3", help="a Python that has simgrid")
    parser.add_argument("--record", type=Path, help="file for scenarios and SimGrid's ends")
    arguments = parser.parse_args()
    asked = list(scenarios())
    theirs = simgrid(arguments.simgrid, asked)
    print(f"SimGrid {theirs['version']}: relative errors of the ends of flows\n")
    print("| scenario | median | worst |\n|---|---|---|")
    for scenario, ends in zip(asked, theirs["ends"], strict=True):
        errors = sorted(abs(a - b) / b for a, b in zip(ours(scenario), ends, strict=True))
        print(f"| {scenario['name']} | {errors[len(errors) // 2]:.1e} | {errors[-1]:.1e} |")
    if arguments.record:
        kept = [
            {**scenario, "ends": ends}
            for scenario, ends in zip(asked, theirs["ends"], strict=True)
            if len(scenario["flows"]) in (2, 20) or "zones, 50" in scenario["name"]
        ]
        found = {"version": theirs["version"], "scenarios": kept}
        arguments.record.write_text(json.dumps(found, indent=0) + "\n", "utf-8")


if __name__ == "__main__":
    main()
