"""Energy of the fleets' devices beside published measurements: the tables of energy.md.

    python benchmarks/fidelity/energy.py

Measured numbers are facts of the sources that are named beside them; ours come from the fleets'
presets and from `fl.simulation.world.power`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from fl.simulation.world.fleets.cross_silo import cross_silo
from fl.simulation.world.fleets.mobile import NETWORKS, PHONES
from fl.simulation.world.fleets.volunteers import MACHINES
from fl.simulation.world.power import Dvfs

NEXUS_ONE_MHZ = (245, 384, 460, 499, 576, 614, 653, 691, 768, 806, 845, 998)
NEXUS_ONE_MW = (  # per percent of load; PowerTutor's PassionConstants
    *(1.1273, 1.5907, 1.8736, 2.1745, 2.6031, 2.9612),
    *(3.1373, 3.4513, 3.9073, 4.1959, 4.6492, 5.4818),
)

GPU_SHARE = 0.7
"""Of a server's power in training, that is its GPUs' (Dodge et al. 2022, by Zeus' overview)."""


class Radio(NamedTuple):
    """A radio's power, linear in its rate, with what it takes before and after a transfer.

    Attributes:
        up_w, down_w: for each Mbit/s.
        base_w: W.
        promotion_j: before.
        tail_j: after.
    """

    up_w: float
    down_w: float
    base_w: float
    promotion_j: float
    tail_j: float

    def upload_j(self, megabytes: float, mbps: float) -> float:
        """Returns what an upload takes by itself, without promotion and tail, J."""
        return (self.up_w * mbps + self.base_w) * 8 * megabytes / mbps

    def download_j(self, megabytes: float, mbps: float) -> float:
        """Returns what a download takes by itself, J."""
        return (self.down_w * mbps + self.base_w) * 8 * megabytes / mbps


# Huang et al., MobiSys 2012, table 4, as it is widely quoted.
LTE = Radio(0.43839, 0.05197, 1.28804, 0.260 * 1.211, 11.6 * 1.060)
WIFI = Radio(0.28317, 0.13701, 0.13286, 0.079 * 0.124, 0.24 * 0.119)


class Figure(NamedTuple):
    """A measured number beside ours.

    Attributes:
        what: was measured.
        measured: the number, with its unit in `unit`.
        ours: likewise.
        unit: W or J.
        source: of the measurement.
        year: of it.
    """

    what: str
    measured: float
    ours: float
    unit: str
    source: str
    year: int

    @property
    def error(self) -> float:
        """Returns ours over measured, less 1."""
        return self.ours / self.measured - 1


def curve_errors(static: float) -> np.ndarray:
    """Returns the relative errors of the cubic law on the Nexus One's clocks, shape (12,)."""
    speed = np.array(NEXUS_ONE_MHZ) / NEXUS_ONE_MHZ[-1]
    measured = np.array(NEXUS_ONE_MW) / NEXUS_ONE_MW[-1]
    return np.asarray((static + (1 - static) * speed**3) / measured - 1)


def figures() -> Iterator[Figure]:
    """Yields what is compared."""
    idle = PHONES["mid-range"].idle_w
    wifi, cellular = NETWORKS["wifi"].radio_w, NETWORKS["4g"].radio_w
    tutor = "PowerTutor (CODES+ISSS), its code"
    yield Figure("Wi-Fi radio at work, HTC Dream", 0.720, wifi - idle, "W", tutor, 2010)
    yield Figure("Wi-Fi radio at work, HTC Sapphire", 0.734, wifi - idle, "W", tutor, 2010)
    yield Figure("Wi-Fi radio at work, Nexus One", 0.404, wifi - idle, "W", tutor, 2010)
    huang = "Huang et al. (MobiSys), second-hand"
    yield Figure("LTE radio, no data", LTE.base_w, cellular - idle, "W", huang, 2012)
    for name, radio, down, up, watts in (
        ("LTE", LTE, 13, 6, cellular),
        ("Wi-Fi", WIFI, 20, 10, wifi),
    ):
        j = (watts - idle) * 80 / down
        yield Figure(
            f"10 MB down, {name}, {down} Mb/s", radio.download_j(10, down), j, "J", huang, 2012
        )
        j = (watts - idle) * 80 / up
        yield Figure(f"10 MB up, {name}, {up} Mb/s", radio.upload_j(10, up), j, "J", huang, 2012)
        whole = radio.upload_j(10, up) + radio.promotion_j + radio.tail_j
        yield Figure(f"the same, with the radio's tail, {name}", whole, j, "J", huang, 2012)
    zeus = "traces of Zeus (NSDI), GPU / 0.7"
    silo = cross_silo(1, 0, server_share=1.0).devices.compute_w.item(0)
    yield Figure(
        "server with a V100 that trains ResNet-50", 220.3 / GPU_SHARE, silo, "W", zeus, 2023
    )
    p100 = MACHINES["p100"].compute_w
    yield Figure("machine with a P100 that trains BERT", 178.7 / GPU_SHARE, p100, "W", zeus, 2023)


def main() -> None:
    """Prints the tables."""
    print("| what | measured | ours | error | source | year |\n|---|---:|---:|---:|---|---|")
    for f in figures():
        print(
            f"| {f.what} | {f.measured:.3g} {f.unit} | {f.ours:.3g} {f.unit} | "
            f"{100 * f.error:+.0f} % | {f.source} | {f.year} |"
        )
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
