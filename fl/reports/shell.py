"""What is around a page about runs: its style, and the script that sorts and hides.

The page reads without its script. The script changes what is there and loads nothing; what a page
may do at all is in its Content-Security-Policy, which allows this script by its hash and no other,
whatever names of runs, metrics or files say.
"""

from __future__ import annotations

import base64
import hashlib
import html
import io
from collections.abc import Sequence
from typing import Any

from fl.reports.files import printable
from fl.reports.plots import PALETTE

STYLE = """
:root { color-scheme: light dark; --ink: #1c1c1c; --back: #fff; --soft: #666; --line: #ddd;
        --head: #f4f4f4; --bad: #b00020; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e4e4; --back: #17181a; --soft: #a0a0a0; --line: #3a3b3e; --head: #242528;
          --bad: #ff7a85; } }
body { color: var(--ink); background: var(--back); font: 15px/1.5 system-ui, sans-serif;
       max-width: 1200px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
p.note, figcaption { color: var(--soft); } .bad { color: var(--bad); }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: 13px; }
th, td { border-bottom: 1px solid var(--line); padding: .3rem .7rem; text-align: left;
         vertical-align: top; font-variant-numeric: tabular-nums; white-space: nowrap; }
th { background: var(--head); }
th button { all: unset; cursor: pointer; } th button:focus-visible { outline: 2px solid; }
th[aria-sort=ascending] button::after { content: " \\2191"; }
th[aria-sort=descending] button::after { content: " \\2193"; }
.curves { display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; font-size: 13px; }
.curves label { cursor: pointer; overflow-wrap: anywhere; } .off { display: none; }
figure svg { width: 100%; height: auto; background: #fff; border-radius: 6px; }
code { font-size: 12px; } a { color: inherit; }
figure { margin: 1rem 0; overflow-x: auto; }
img { width: 100%; background: #fff; border-radius: 6px; } details img { max-width: 800px; }
@media (max-width: 700px) {
  body { margin-top: 1rem; } h1 { font-size: 1.3rem; } .long { overflow-wrap: anywhere; }
  figure::before { content: "\\2194 wider than the screen: swipe it"; display: block;
    position: sticky; left: 0; width: fit-content; color: var(--soft); font-size: 13px; }
  figure img, figure svg { width: 860px; max-width: none; }
  figcaption, .curves { position: sticky; left: 0; }
  th, td { padding: .3rem .4rem; }
  td:first-child, th:first-child { position: sticky; left: 0; background: var(--back);
    min-width: 9rem; max-width: 10rem; white-space: normal; overflow-wrap: anywhere; }
  th:first-child { background: var(--head); } }
"""

# Tables are sorted by a click on a heading; a figure's curves, which are groups of its SVG called
# curve-K-..., are shown and hidden by check boxes. A live page asks every two seconds whether there
# is another one, and takes its content, sorted and hidden as before.
SCRIPT = r"""
(() => {
  "use strict";
  const UNITS = {
    "": 1, "%": 1, "µs": 1e-6, ms: 1e-3, s: 1, min: 60, h: 3600, d: 86400,
    B: 1, kB: 1e3, MB: 1e6, GB: 1e9, TB: 1e12, PB: 1e15, EB: 1e18,
    mJ: 1e-3, J: 1, kJ: 1e3, MJ: 1e6, GJ: 1e9, TJ: 1e12, k: 1e3, M: 1e6, G: 1e9, T: 1e12,
  };
  const PART = /^\s*([+-]?(?:\d[\d,]*\.?\d*|\.\d+)(?:e[+-]?\d+)?)\s*([a-zA-Zµ%]*)/;
  const sorted = new Map();
  const hidden = new Set();

  // The number that a cell says, "2 min 5 s" being 125; NaN of a text.
  function number(text) {
    let sum = NaN;
    for (let part; (part = PART.exec(text)); text = text.slice(part[0].length)) {
      if (!Object.hasOwn(UNITS, part[2])) return NaN;
      const value = Number(part[1].replaceAll(",", "")) * UNITS[part[2]];
      if (Number.isNaN(sum)) sum = value; else if (part[2]) sum += value; else break;
    }
    return sum;
  }

  function sort(table, column, down) {
    const rows = [...table.rows].slice(1);
    const cells = new Map(rows.map((row) => [row, (row.cells[column]?.textContent ?? "").trim()]));
    const place = (row) => (cells.get(row) === "\u2013" ? 2 : Number.isNaN(number(cells.get(row))));
    rows.sort((a, b) => {
      if (place(a) !== place(b)) return place(a) - place(b);
      const [x, y] = [number(cells.get(a)), number(cells.get(b))];
      const order = Number.isNaN(x)
        ? cells.get(a).localeCompare(cells.get(b), undefined, { numeric: true })
        : x - y;
      return down ? -order : order;
    });
    for (const row of rows) row.parentNode.append(row);
    [...table.rows[0].cells].forEach((head, i) => {
      if (i === column) head.setAttribute("aria-sort", down ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
    });
  }

  function sortable(table, number) {
    if (table.rows.length < 3) return;
    [...table.rows[0].cells].forEach((head, column) => {
      const button = document.createElement("button");
      button.textContent = head.textContent;
      button.addEventListener("click", () => {
        const down = head.getAttribute("aria-sort") === "ascending";
        sorted.set(number, [column, down]);
        sort(table, column, down);
      });
      head.replaceChildren(button);
    });
    if (sorted.has(number)) sort(table, ...sorted.get(number));
  }

  // The picture becomes part of the page, so that its groups can be hidden.
  function toggled(figure) {
    const list = figure.querySelector(".curves");
    const image = figure.querySelector('img[src^="data:image/svg+xml;base64,"]');
    if (!list || !image) return;
    const bytes = Uint8Array.from(atob(image.src.split(",")[1]), (c) => c.charCodeAt(0));
    const made = new DOMParser().parseFromString(new TextDecoder().decode(bytes), "image/svg+xml");
    const svg = document.importNode(made.documentElement, true);
    svg.setAttribute("role", "img");
    svg.setAttribute("aria-label", image.alt);
    image.replaceWith(svg);
    list.hidden = false;
    for (const box of list.querySelectorAll("input")) {
      const name = JSON.stringify([image.alt, box.parentNode.textContent]);
      const show = () => {
        for (const group of svg.querySelectorAll(`[id^="curve-${box.dataset.curve}-"]`))
          group.classList.toggle("off", !box.checked);
      };
      box.checked = !hidden.has(name);
      box.addEventListener("change", () => {
        if (box.checked) hidden.delete(name); else hidden.add(name);
        show();
      });
      show();
    }
  }

  function prepare() {
    document.querySelectorAll("table").forEach(sortable);
    document.querySelectorAll("figure").forEach(toggled);
  }

  async function follow() {
    const said = document.getElementById("live");
    try {
      const version = await (await fetch("version", { cache: "no-store" })).text();
      if (version !== document.body.dataset.version) {
        const text = await (await fetch("./", { cache: "no-store" })).text();
        const found = new DOMParser().parseFromString(text, "text/html");
        document.title = found.title;
        document.body.dataset.version = found.body.dataset.version;
        const main = document.importNode(found.querySelector("main"), true);
        document.querySelector("main").replaceWith(main);
        prepare();
      }
      said.textContent = "";
    } catch {
      said.textContent = "This page is no longer kept up: fl report --live has ended.";
    }
    setTimeout(follow, 2000);
  }

  prepare();
  if (document.body.dataset.version) setTimeout(follow, 2000);
})();
"""


def policy(*, live: bool) -> str:
    """Returns the Content-Security-Policy of a page."""
    script = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    rules = ["default-src 'none'", "img-src data:", "style-src 'unsafe-inline'"]
    rules += [f"script-src 'sha256-{script}'", "base-uri 'none'", "form-action 'none'"]
    return "; ".join([*rules, "connect-src 'self'"] if live else rules)


def document(title: str, body: str, version: str | None = None) -> str:
    """Returns a page as HTML.

    Args:
        title: text.
        body: HTML.
        version: of a live page, another one whenever its content is another; None is no live page.
    """
    shown = text(title)
    rules = policy(live=version is not None)
    live = "" if version is None else f' data-version="{html.escape(version)}"'
    said = "" if version is None else '<p id="live" class="bad" role="status"></p>\n'
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{rules}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{shown} · fl</title>\n<style>{STYLE}</style></head>\n<body{live}>\n{said}"
        f"<main>\n{body}\n</main>\n<script>{SCRIPT}</script>\n</body></html>\n"
    )


def text(said: str) -> str:
    """Returns text as HTML."""
    return html.escape(printable(said))


def code(said: str) -> str:
    """Returns text as HTML, in the letters of code."""
    return f"<code>{text(said)}</code>"


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a table whose cells are text."""
    return cells(heads, [[text(cell) for cell in row] for row in rows])


def cells(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a table whose cells are HTML."""
    head = "".join(f"<th>{text(name)}</th>" for name in heads)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>\n" for row in rows)
    return f'<div class="wide"><table><tr>{head}</tr>\n{body}</table></div>'


def svg(figure: Any) -> str:
    """Returns a figure as the address of an image."""
    import matplotlib

    # Neither a date nor random names, so that equal runs make equal pages.
    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "fl"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return f"data:image/svg+xml;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def picture(image: str, title: str, curves: Sequence[str] = ()) -> str:
    """Returns a figure; names of its curves, if there are several, for the script's check boxes."""
    caption = f"<figcaption>{text(title)}</figcaption>"
    boxes = "".join(
        f'<label><input type="checkbox" checked data-curve="{k}" style="accent-color: '
        f'{PALETTE[k % len(PALETTE)]}"> {text(name)}</label>'
        for k, name in enumerate(curves)
    )
    more = f'<div class="curves" hidden>{boxes}</div>' if len(curves) > 1 else ""
    return f'<figure><img alt="{text(title)}" src="{image}">{caption}{more}</figure>'
