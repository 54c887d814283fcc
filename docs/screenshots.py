"""The pictures of the report and of the live page in docs/screenshots: python docs/screenshots.py.

They are of a sweep that this script runs, and of a run that goes on while it is looked at, in
headless Chromium: on a desktop and 400 px wide, light and dark. It takes minutes, in a folder that
is removed again.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs" / "screenshots"
sys.path.insert(0, str(ROOT / "tests" / "reports"))

import browser as chromium  # noqa: E402 - found by the line above

from fl.reports.live import Site, running, server  # noqa: E402
from fl.reports.report import main as report  # noqa: E402

COMMON = (
    "fleet=mobile num_rounds=30 executor=serial progress=false target.value=0.8 "
    "hydra.sweep.dir=sweep"
)
SWEEP = f"-m strategy=fedavg,fedadam,fedbuff seed=0,1 {COMMON}"
GOES_ON = f"-m strategy=fedprox seed=0 {COMMON}"
SEEN_AT = 12  # rounds of it
WIDTHS = {"desktop": 1280, "phone": 400}  # to the pixels of a window
HEIGHT = 1300  # pixels, of what a page has from its top
COLOURS = 256
GAP = 40  # pixels between two phones
LARGEST = 150_000  # bytes of a picture


def fl(line: str, folder: Path) -> subprocess.Popen[bytes]:
    """Starts a line of `fl` in a folder."""
    command = [sys.executable, "-m", "fl", *line.split()]
    kept = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, cwd=folder, env=kept, stdout=subprocess.DEVNULL)


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Gives the address of the live page of a folder."""
    made = server(Site([folder]))
    threading.Thread(target=made.serve_forever, args=(0.05,), daemon=True).start()
    yield f"http://127.0.0.1:{made.server_address[1]}/"
    made.shutdown()
    made.server_close()


def rounds(folder: Path) -> int:
    """Returns how many rounds of a run below a folder that goes on have been evaluated."""
    return max((len(run.history) for run in running([folder])), default=0)


def taken(open_page: Callable[[int, bool], None], browser: chromium.Browser, name: str) -> None:
    """Writes the pictures of a page: on a desktop, and on phones beside each other."""
    for device, width in WIDTHS.items():
        shown = []
        for dark in (False, True):
            path = FOLDER / f"{name}_{device}_{'dark' if dark else 'light'}.png"
            open_page(width, dark)
            browser.picture(path, HEIGHT)
            with Image.open(path) as picture:
                shown.append(picture.convert("RGB"))
            if device != "phone":
                small(shown[-1], path)
            else:
                path.unlink()
        if device == "phone":
            both = Image.new("RGB", (2 * width + GAP, HEIGHT), "white")
            for k, picture in enumerate(shown):
                both.paste(picture, (k * (width + GAP), 0))
            small(both, FOLDER / f"{name}_{device}.png")


def small(picture: Image.Image, path: Path) -> None:
    """Writes a picture in few colours."""
    few = picture.quantize(COLOURS, kmeans=3, dither=Image.Dither.NONE)
    few.save(path, optimize=True)
    if path.stat().st_size > LARGEST:
        raise SystemExit(f"{path} has {path.stat().st_size} bytes; {LARGEST} are meant to be most")


def main() -> None:
    """Makes the pictures."""
    if chromium.PROGRAM is None:
        raise SystemExit(f"none of {', '.join(chromium.NAMES)} is on the PATH: install Chromium")
    FOLDER.mkdir(exist_ok=True)
    with TemporaryDirectory() as place:
        folder, profile = Path(place) / "sweep", Path(place) / "profile"
        profile.mkdir()
        if fl(SWEEP, Path(place)).wait():
            raise SystemExit("the sweep has failed")
        browser = chromium.Browser(profile)
        try:
            report([str(folder)])
            page = f"file://{folder}/report.html"
            taken(lambda width, dark: browser.open(page, width, dark=dark), browser, "report")

            with fl(GOES_ON, Path(place)) as run:
                while run.poll() is None and rounds(folder) < SEEN_AT:
                    time.sleep(0.1)
                run.send_signal(signal.SIGSTOP)  # so that it does not end while it is looked at
                with served(folder) as live:
                    taken(lambda width, dark: browser.open(live, width, dark=dark), browser, "live")
                run.kill()
        finally:
            browser.close()


if __name__ == "__main__":
    main()
