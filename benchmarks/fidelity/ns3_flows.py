"""When ns-3 says that TCP transfers end: JSON from standard input, to a file.

    python ns3_flows.py FILE < scenarios

Run by `packets.py` under a Python that has `ns3`. Packets of every flow, from a sender of its own
over a router, a bottleneck and another router to a receiver of its own.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from ns import ns

SEGMENT = 1448
"""Payload of a packet in bytes, of 1500 with the headers of IP and TCP with time stamps."""


def ends_of(scenario: dict[str, Any], first: int) -> list[float]:
    """Returns when each flow of a scenario has arrived, s, to the millisecond."""
    flows = scenario["flows"]
    ns.Config.SetDefault("ns3::TcpSocket::SegmentSize", ns.UintegerValue(SEGMENT))
    ns.Config.SetDefault("ns3::TcpSocket::InitialCwnd", ns.UintegerValue(10))
    for name in ("SndBufSize", "RcvBufSize"):
        ns.Config.SetDefault(f"ns3::TcpSocket::{name}", ns.UintegerValue(1 << 24))
    routers = ns.NodeContainer()
    routers.Create(2)
    ends = [ns.NodeContainer(), ns.NodeContainer()]
    stack = ns.InternetStackHelper()
    stack.Install(routers)
    for side in ends:
        side.Create(len(flows))
        stack.Install(side)
    queue = ns.TrafficControlHelper()
    queue.SetRootQueueDisc(scenario["queue"])

    def join(a: Any, b: Any, bps: float, delay_s: float) -> Any:
        helper = ns.PointToPointHelper()
        helper.SetDeviceAttribute("DataRate", ns.StringValue(f"{bps:.0f}bps"))
        helper.SetChannelAttribute("Delay", ns.StringValue(f"{delay_s * 1e6:.0f}us"))
        devices = helper.Install(a, b)
        queue.Install(devices)
        nonlocal first
        first += 1
        network = ns.Ipv4Address(f"10.{first // 250}.{first % 250}.0")
        return ns.Ipv4AddressHelper(network, ns.Ipv4Mask("255.255.255.0")).Assign(devices)

    join(routers.Get(0), routers.Get(1), scenario["bps"], scenario["delay_s"])
    sinks = []
    for k, (size, delay_s, start) in enumerate(flows):
        join(ends[0].Get(k), routers.Get(0), 1e9, delay_s)
        address = join(routers.Get(1), ends[1].Get(k), 1e9, 0.0).GetAddress(1)
        sender = ns.BulkSendHelper(
            "ns3::TcpSocketFactory", ns.InetSocketAddress(address, 9).ConvertTo()
        )
        sender.SetAttribute("MaxBytes", ns.UintegerValue(size))
        sender.Install(ends[0].Get(k)).Start(ns.Seconds(start))
        local = ns.InetSocketAddress(ns.Ipv4Address.GetAny(), 9).ConvertTo()
        sink = ns.PacketSinkHelper("ns3::TcpSocketFactory", local).Install(ends[1].Get(k))
        sinks.append(sink.Get(0).GetObject[ns.PacketSink]())
    ns.Ipv4GlobalRoutingHelper.PopulateRoutingTables()
    arrived = [-1.0] * len(flows)
    for millisecond in range(1, 300_000):
        ns.Simulator.Stop(ns.MilliSeconds(1))
        ns.Simulator.Run()
        for k, sink in enumerate(sinks):
            if arrived[k] < 0 and sink.GetTotalRx() >= flows[k][0]:
                arrived[k] = millisecond / 1000
        if min(arrived) >= 0:
            break
    ns.Simulator.Destroy()
    return arrived


def main() -> None:
    """Answers."""
    found = [ends_of(scenario, 60 * k) for k, scenario in enumerate(json.load(sys.stdin))]
    Path(sys.argv[1]).write_text(json.dumps(found), "utf-8")


if __name__ == "__main__":
    main()
