"""The page about runs and the live page in headless Chromium, where there is one.

With FL_SCREENSHOTS=DIR the pages are kept there as pictures, to be looked at.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import browser as chromium
import pytest
from test_live import served
from test_report import leave

from fl.reports.report import main
from fl.reports.target import Target

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(chromium.PROGRAM is None, reason="there is no Chromium"),
]

HOSTILE = "<script>window.owned = 1</script>"
IMAGE = '"><img src=x onerror="window.owned = 1">'
TABLE = (  # that has a column of a name
    "[...document.querySelectorAll('table')].find(t =>"
    "[...t.rows[0].cells].some(c => c.textContent === '%s'))"
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    made = chromium.Browser(tmp_path_factory.mktemp("profile"))
    yield made
    made.close()


@pytest.fixture(autouse=True)
def _no_complaints(browser):
    browser.complaints.clear()
    yield
    assert browser.complaints == []


@pytest.fixture
def runs(tmp_path, row):
    """Two methods with two seeds, and one whose name is a script."""
    folder = tmp_path / "runs"
    target = Target("accuracy", 0.4)
    for seed in (0, 1):
        leave(folder / f"a{seed}", row, seed, [0.1, 0.5, 0.6], target, lr=0.1, name="first")
        leave(folder / f"b{seed}", row, seed, [0.1, 0.3, 0.9], target, lr=0.2, name=HOSTILE)
    leave(folder / "c", row, 0, [0.2, 0.4, 0.8], target, lr=0.3, name=IMAGE)
    return folder


def looked_at(browser, name):
    if place := os.environ.get("FL_SCREENSHOTS"):
        browser.picture(Path(place) / f"{name}.png")


def column(browser, heading, of="seed"):
    """The cells below a heading, of the first table that has a column of a name."""
    return browser.value(
        f"(() => {{ const t = {TABLE % of};"
        f"const i = [...t.rows[0].cells].findIndex(c => c.textContent === {heading!r});"
        "return [...t.rows].slice(1).map(r => r.cells[i].textContent) })()"
    )


def click(browser, heading, of="seed"):
    browser.value(
        f"[...({TABLE % of}).rows[0].cells].find(c => c.textContent === {heading!r})"
        ".querySelector('button').click()"
    )


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 400])
def test_the_report_fits_its_window_sorts_and_hides(browser, runs, width, dark):
    main([str(runs)])
    browser.open(f"file://{runs}/report.html", width, dark=dark)
    assert browser.value("document.documentElement.scrollWidth") <= width
    looked_at(browser, f"report_{width}_{'dark' if dark else 'light'}")
    back = browser.value("getComputedStyle(document.body).backgroundColor")
    assert (back == "rgb(23, 24, 26)") == dark

    before = column(browser, "seed")
    click(browser, "seed")
    assert column(browser, "seed") == sorted(before)
    click(browser, "seed")
    assert column(browser, "seed") == sorted(before, reverse=True)

    shown = (
        "[...document.querySelectorAll('figure svg')].map(s =>"
        "[...s.querySelectorAll('[id^=curve-1-]')].map(g => getComputedStyle(g).display))"
    )
    first, *others = browser.value(shown)
    assert first
    assert set(first) == {"inline"}
    browser.value("document.querySelector('input[data-curve=\"1\"]').click()")
    assert set(browser.value(shown)[0]) == {"none"}
    assert browser.value(shown)[1:] == others  # of other figures
    browser.value("document.querySelector('input[data-curve=\"1\"]').click()")
    assert browser.value(shown)[0] == first


def test_names_of_others_do_nothing(browser, runs):
    main([str(runs), "--title", HOSTILE])
    browser.open(f"file://{runs}/report.html")
    assert browser.value("window.owned") is None
    assert browser.value("document.querySelectorAll('script').length") == 1
    assert browser.value("document.querySelectorAll('img[src=x]').length") == 0
    assert browser.value("document.title").startswith(HOSTILE)
    # And if something did get in, the policy would not let it run.
    browser.value(
        "new Promise(done => { const s = document.createElement('script');"
        "s.textContent = 'window.owned = 1'; document.body.append(s); setTimeout(done, 100) })"
    )
    assert browser.value("window.owned") is None
    assert any("Content Security Policy" in each for each in browser.complaints)
    browser.complaints.clear()


def test_numbers_are_sorted_by_what_they_are(browser, runs):
    main([str(runs)])
    browser.open(f"file://{runs}/report.html")
    said = ["2 h 13 min", "9 s", "1.2 GB", "812 B", "–", "350 ms", "35.1 kJ", "12,345", "-1"]  # noqa: RUF001
    cells = "".join(f"<tr><td>{each}</td></tr>" for each in said)
    text = f"<table id=own><tr><th>x</th></tr>{cells}</table>"
    page = (runs / "report.html").read_text("utf-8").replace("<main>", f"<main>{text}")
    (runs / "own.html").write_text(page, "utf-8")
    browser.open(f"file://{runs}/own.html")
    browser.value("document.querySelector('#own button').click()")
    order = browser.value("[...document.querySelectorAll('#own td')].map(c => c.textContent)")
    sizes = {"-1": -1, "350 ms": 0.35, "9 s": 9, "812 B": 812, "2 h 13 min": 7980}
    sizes |= {"12,345": 12345, "35.1 kJ": 35100, "1.2 GB": 1.2e9}
    assert order == [*sorted(sizes, key=sizes.get), "–"]  # noqa: RUF001


def eventually(browser, expression):
    for _ in range(150):
        if browser.value(expression):
            return
        time.sleep(0.2)
    raise AssertionError(expression)


@pytest.mark.parametrize("width", [1280, 400])
def test_the_live_page_follows_runs_and_keeps_what_was_chosen(browser, runs, row, width):
    going = runs / "d"
    leave(going, row, 0, [0.1, 0.2], Target("accuracy", 0.4), lr=0.4, name="going")
    summary = (going / "summary.json").read_text()
    (going / "summary.json").unlink()  # as while it runs
    with served(runs) as address:
        browser.open(f"{address}/", width, dark=width == 400)
        assert browser.value("document.documentElement.scrollWidth") <= width
        assert "0.2" in column(browser, "accuracy", "simulated")
        click(browser, "seed")
        click(browser, "seed")
        browser.value("document.querySelector('input[data-curve=\"1\"]').click()")
        looked_at(browser, f"live_{width}")

        lines = (going / "metrics.csv").read_text().splitlines(keepends=True)
        more = lines[-1].replace("0.2", "0.7")
        (going / "metrics.csv").write_text("".join([*lines, more]))
        eventually(browser, "document.querySelector('main').textContent.includes('0.7')")
        seeds = column(browser, "seed")
        assert seeds == sorted(seeds, reverse=True)
        assert not browser.value("document.querySelector('input[data-curve=\"1\"]').checked")

        (going / "summary.json").write_text(summary)
        eventually(browser, "!document.querySelector('main').textContent.includes('Running')")
        assert browser.value("window.owned") is None
    eventually(browser, "document.getElementById('live').textContent.includes('no longer')")
    browser.complaints.clear()  # of what cannot be reached any more


def test_the_live_page_begins_before_there_is_a_run(browser, tmp_path, row):
    with served(tmp_path / "later") as address:
        browser.open(f"{address}/")
        leave(tmp_path / "later" / "a", row, 0, [0.1, 0.5], None)
        eventually(browser, "document.querySelector('main').textContent.includes('1 run')")
