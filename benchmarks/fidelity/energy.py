"""Energy of the fleets' devices beside published measurements: the tables of energy.md.

    python benchmarks/fidelity/energy.py

Measured numbers are facts of the sources that are named beside them; ours come from the fleets'
presets and from `fl.simulation.world.power`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from fl.runs.groups import content
from fl.simulation.world.fleets.cross_silo import cross_silo
from fl.simulation.world.fleets.mobile import NETWORKS, PHONES
from fl.simulation.world.fleets.volunteers import MACHINES
from fl.simulation.world.power import Dvfs
from fl.simulation.world.radio import Radio

NEXUS_ONE_MHZ = (245, 384, 460, 499, 576, 614, 653, 691, 768, 806, 845, 998)
NEXUS_ONE_MW = (  # per percent of load; PowerTutor's PassionConstants
    *(1.1273, 1.5907, 1.8736, 2.1745, 2.6031, 2.9612),
    *(3.1373, 3.4513, 3.9073, 4.1959, 4.6492, 5.4818),
)

GPU_SHARE = 0.7
"""Of a server's power in training, that is its GPUs' (Dodge et al. 2022, by Zeus' overview)."""


# Huang et al., MobiSys 2012, table 4, as it is widely quoted. Of LTE, AT&T's Application Resource
# Optimizer has slopes, tail_w and promotion in its code, and 1.2 for base_w.
LTE = Radio(1.28804, 51.97e-9, 438.39e-9, 11.576, 1.060, 0.260 * 1.2107)
WIFI = Radio(0.13286, 137.01e-9, 283.17e-9, 0.238, 0.119, 0.079 * 0.124)

WAITING_W = 2.35
"""Of the phone of `PHONE_2020`, with its screen on: the median of the study's 32 baselines."""

# Narayanan et al., SIGCOMM 2021 (SIGCOMM21-5G/artifact, MN-Transfer_combined.csv): Mbit/s and W of
# a phone of 2020 in 51 s of transfers each, of those whose rate was within a tenth of its target.
PHONE_2020 = {
    ("4g", "down"): (
        *((1.04, 2.694), (5.49, 2.780), (10.36, 2.807), (15.53, 2.963), (19.27, 2.910)),
        *((26.12, 2.984), (31.07, 3.086), (36.28, 3.217), (42.10, 3.258), (46.99, 3.338)),
        *((51.78, 3.421), (56.97, 3.353)),
    ),
    ("4g", "up"): (
        *((1.02, 2.908), (3.06, 3.242), (5.10, 3.149), (7.14, 3.727), (10.20, 3.604)),
        *((12.25, 4.043), (15.31, 4.139), (17.35, 4.363)),
    ),
    ("5g", "down"): ((1.04, 2.679), (10.42, 3.079), (31.07, 3.578), (52.59, 3.589), (96.21, 4.175)),
    ("5g", "up"): ((1.02, 3.154), (10.20, 3.837), (20.42, 3.543), (30.62, 4.177), (40.92, 4.603)),
}


class Figure(NamedTuple):
    """A measured number beside ours.

    Attributes:
        what: was measured.
        measured: the number, with its unit in `unit`.
        ours: likewise, of radios with the flat power of the default fleet.
        unit: W or J.
        source: of the measurement.
        year: of it.
        states: ours with `fleet/radio=states`; None where there is no radio.
    """

    what: str
    measured: float
    ours: float
    unit: str
    source: str
    year: int
    states: float | None = None

    def shown(self, ours: float | None) -> str:
        """Returns a number of ours, and its error: it over measured, less 1."""
        if ours is None:
            return "|  "
        return f"| {ours:.3g} {self.unit}, {100 * (ours / self.measured - 1):+.0f} % "


def curve_errors(static: float) -> np.ndarray:
    """Returns the relative errors of the cubic law on the Nexus One's clocks, shape (12,)."""
    speed = np.array(NEXUS_ONE_MHZ) / NEXUS_ONE_MHZ[-1]
    measured = np.array(NEXUS_ONE_MW) / NEXUS_ONE_MW[-1]
    return np.asarray((static + (1 - static) * speed**3) / measured - 1)


def radio(network: str) -> Radio:
    """Returns the radio of a network of `fleet=mobile fleet/radio=states`."""
    node = content("fleet/radio", "states")[network]
    return Radio(**{name: value for name, value in node.items() if name != "_target_"})


def fitted(network: str) -> list[float]:
    """Returns base_w, and J for each bit down and up, of least squares over the phone of 2020."""
    rows = [
        (1.0, mbps * (way == "down"), mbps * (way == "up"), watts - WAITING_W)
        for way in ("down", "up")
        for mbps, watts in PHONE_2020[network, way]
    ]
    columns = np.array(rows)
    base_w, down, up = np.linalg.lstsq(columns[:, :3], columns[:, 3])[0].tolist()
    return [base_w, down * 1e-6, up * 1e-6]


def figures() -> Iterator[Figure]:
    """Yields what is compared."""
    idle = PHONES["mid-range"].idle_w
    wifi = NETWORKS["wifi"].radio_w - idle
    tutor = "PowerTutor (CODES+ISSS), its code"
    for phone, watts in (("HTC Dream", 0.720), ("HTC Sapphire", 0.734), ("Nexus One", 0.404)):
        what, states = f"Wi-Fi radio at work, {phone}", radio("wifi").base_w
        yield Figure(what, watts, wifi, "W", tutor, 2010, states)
    huang = "Huang et al. (MobiSys), second-hand"
    for name, network, then, down, up in (
        ("LTE", "4g", LTE, 13, 6),
        ("Wi-Fi", "wifi", WIFI, 20, 10),
    ):
        flat, now = NETWORKS[network].radio_w - idle, radio(network)
        if name == "LTE":
            yield Figure("LTE radio, no data", then.base_w, flat, "W", huang, 2012, now.base_w)
        for way, mbps in (("down", down), ("up", up)):
            what, seconds = f"10 MB {way}, {name}, {mbps} Mb/s", 80 / mbps
            bits = (80e6, 0.0) if way == "down" else (0.0, 80e6)
            measured, ours = (r.transfer_j(seconds, *bits) for r in (then, now))
            yield Figure(what, measured, flat * seconds, "J", huang, 2012, ours)
        measured, ours = (r.ready_j(math.inf) + r.transfer_j(seconds, *bits) for r in (then, now))
        what = f"the same, with the radio's tail, {name}"
        yield Figure(what, measured, flat * seconds, "J", huang, 2012, ours)
    narayanan = "Narayanan et al. (SIGCOMM), its data"
    for (network, way), rows in PHONE_2020.items():
        flat, now = NETWORKS[network].radio_w - idle, radio(network)
        for rate, watts in (rows[1], rows[len(rows) // 2], rows[-1]):
            bits = (1e6 * rate, 0.0) if way == "down" else (0.0, 1e6 * rate)
            what = f"{network.upper()} radio, {rate:.0f} Mb/s {way}"
            states = now.transfer_j(1.0, *bits)
            yield Figure(what, watts - WAITING_W, flat, "W", narayanan, 2021, states)
    zeus = "traces of Zeus (NSDI), GPU / 0.7"
    silo = cross_silo(1, 0, server_share=1.0).devices.compute_w.item(0)
    yield Figure(
        "server with a V100 that trains ResNet-50", 220.3 / GPU_SHARE, silo, "W", zeus, 2023
    )
    p100 = MACHINES["p100"].compute_w
    yield Figure("machine with a P100 that trains BERT", 178.7 / GPU_SHARE, p100, "W", zeus, 2023)


def main() -> None:
    """Prints the tables."""
    print("| what | measured | flat power | by states | source | year |")
    print("|---|---:|---:|---:|---|---|")
    for f in figures():
        both = f.shown(f.ours) + f.shown(f.states)
        print(f"| {f.what} | {f.measured:.3g} {f.unit} {both}| {f.source} | {f.year} |")
    print()
    for network in ("4g", "5g"):
        base_w, down, up = fitted(network)
        print(f"{network}: base_w {base_w:.2f}, J for each bit down {down:.3g}, up {up:.3g}")
    print("\n| clock, MHz | measured, of full power | law, static 0.2 | error |")
    print("|---:|---:|---:|---:|")
    static = Dvfs().static
    for mhz, mw, error in zip(NEXUS_ONE_MHZ, NEXUS_ONE_MW, curve_errors(static), strict=True):
        share = mw / NEXUS_ONE_MW[-1]
        print(f"| {mhz} | {share:.3f} | {share * (1 + error):.3f} | {100 * error:+.0f} % |")
    fits = np.linspace(0, 0.6, 601)
    best = fits[np.argmin([np.abs(curve_errors(s)).max() for s in fits])]
    worst = np.abs(curve_errors(best)).max()
    print(f"\nbest static {best:.3f}: at most {100 * worst:.0f} % off")


if __name__ == "__main__":
    main()
