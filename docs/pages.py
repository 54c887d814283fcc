"""The documentation site, a hook of MkDocs (mkdocs.yml). `make docs` builds it into build/site.

Its pages are the README, those of docs/, experiments/ and benchmarks/, the notebooks, and pages
made from the code: one for each member of a group of fl/conf, with the comments and keys of its
YAML and the docstring of the class it makes, and one for each package, with all other public names.
Links between them are those of the repository; a link to a file of code leads to a page that shows
it.
"""

from __future__ import annotations

import inspect
import json
import os
import re
import sys
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from itertools import dropwhile
from pathlib import Path, PurePosixPath
from typing import Any

from hydra.utils import get_object
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "docs")]

from tables import linked, target  # noqa: E402 - found by the line above

from fl.reports import history, run_writer  # noqa: E402
from fl.runs import usage  # noqa: E402
from fl.runs.groups import groups, header, text  # noqa: E402
from fl.runs.usage import GROUPS  # noqa: E402
from fl.simulation.kernel.trace import Event  # noqa: E402

# Packages whose names scripts and own parts use, in the order of the menu.
PACKAGES = (
    "fl",
    "fl.strategies",
    "fl.clients",
    "fl.aggregation",
    "fl.attacks",
    "fl.collectives",
    "fl.compression",
    "fl.data",
    "fl.models",
    "fl.selection",
    "fl.submodels",
    "fl.topologies",
    "fl.reports",
    "fl.deployment",
)
COMMANDS, KEYS, FILES = (f"reference/{name}.md" for name in ("commands", "keys", "files"))
_LINK = re.compile(r"\]\(([^)\s#]+)(#[^)\s]*)?\)")
_FENCES = {".py": "python", ".sh": "bash", ".yaml": "yaml", ".toml": "toml", ".cff": "yaml"}
_shown: set[str] = set()  # files of code that have a page


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Adds to the menu what is made from the code and from the experiments."""
    methods = [
        {title(group): [{name: member(group, name)} for name in names]}
        for top in GROUPS
        for group, names in groups(top)
    ]
    config.nav += [
        {"Methods and parts": ["docs/methods.md", *methods]},
        {"Experiments": [str(page.relative_to(ROOT)) for page in experiments()]},
        {
            "Reference": [
                "docs/glossary.md",
                {"Commands": COMMANDS},
                {"Keys of a run": KEYS},
                {"Files of a run": FILES},
            ]
        },
        {"Python": [{package: reference(package)} for package in PACKAGES]},
        {"Project": ["CONTRIBUTING.md", "CHANGELOG.md"]},
    ]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Returns the repository's pages and pictures, at their places in it, and what is made."""

    def there(path: Path) -> File:
        place = path.relative_to(ROOT).as_posix()
        return File(place, str(ROOT), config.site_dir, config.use_directory_urls)

    found = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
    found += [*(ROOT / "docs").glob("*.md"), *(ROOT / "docs").rglob("*.png")]
    found += [*experiments(), *(ROOT / "experiments").rglob("*.png")]
    found += (ROOT / "benchmarks").rglob("*.md")
    themes = [file for file in files if file.src_dir != str(ROOT / "docs")]
    made = {member(group, name): method(group, name) for group, name in members()}
    made |= {reference(package): package_page(package) for package in PACKAGES}
    made |= {COMMANDS: commands_page(), KEYS: keys_page(), FILES: files_page()}
    notebooks = sorted((ROOT / "examples" / "notebooks").glob("*.ipynb"))
    made |= {notebook_page(path): cells(path) for path in notebooks}
    pages = [File.generated(config, place, content=content) for place, content in made.items()]
    sources = {code(path): path for path in linked_files(found, made)}
    pages += [File.generated(config, p, content=source(path)) for p, path in sources.items()]
    _shown.update(path.relative_to(ROOT).as_posix() for path in sources.values())
    return Files([*themes, *map(there, sorted(found)), *pages])


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Returns a page whose links to code lead to the pages that show it."""
    place = PurePosixPath(page.file.src_uri)
    if page.is_homepage:
        page.meta["hide"] = ["navigation"]  # which has nothing but this page: lines have its room

    def changed(found: re.Match[str]) -> str:
        link, anchor = found[1], found[2] or ""
        if "://" in link or link.startswith("mailto:"):
            return found[0]
        path = os.path.normpath(place.parent / link)
        if path.endswith(".ipynb"):
            new: str | None = notebook_page(ROOT / path)
        else:
            new = code(ROOT / path) if path in _shown else package_of(path)
        if new is None:
            return found[0]
        return f"]({os.path.relpath(new, place.parent)}{anchor})"

    return _LINK.sub(changed, markdown)


def commands_page() -> str:
    """Returns the page of what can be typed after `fl`."""
    return (
        "# Commands\n\nThis is `fl --help`. `fl COMMAND --help` has the options of a command, "
        f"`fl help GROUP` the members of a group.\n\n```text\n{usage_text()}\n```\n"
    )


def keys_page() -> str:
    """Returns the page of the keys that every run has, beside those of its parts."""
    lines = (ROOT / "fl" / "conf" / "config.yaml").read_text("utf-8")
    return (
        "# Keys of a run\n\nThe groups under `defaults` have keys of their own, on the page of "
        "each member. `fl --cfg job` shows the whole configuration of a run, `KEY=VALUE` "
        "changes it.\n\n"
        f"```yaml\n{lines}```\n"
    )


def files_page() -> str:
    """Returns the page of what a run leaves: its files, their columns, the events of a trace."""
    writer = inspect.cleandoc(run_writer.__doc__ or "")
    first, files, *rest = re.split(r"\n\n(?=\S)|\n\n(?=    )", writer)
    kinds = inspect.getsource(Event)
    events = re.findall(r"^    ([A-Z_]+) = \d+(?:  # (.*))?$", kinds, re.MULTILINE)
    rows = "\n".join(f"| `{name.lower()}` | {said or ''} |" for name, said in events)
    inputs = inspect.getsource(history).partition("\nCOLUMNS = ")[2]
    columns = inputs.split('"""')[1].partition("\n\n")[2].strip()
    return (
        f"# Files of a run\n\n{first}\n\n```text\n{inspect.cleandoc(files)}\n```\n\n"
        + "\n\n".join(rest)
        + f"\n\n## Columns of metrics.csv\n\n{columns}\n\nWhat is measured by name is in "
        "[data.md](../docs/data.md#what-is-measured).\n\n## Columns of trace.parquet\n\n"
        "`time_s`: virtual time, s; `kind`: of the event, below; `client`: its number, -1 for the "
        "server; `dispatch`: number of the request, for what belongs to one; `bytes`; `value`: by "
        f"kind.\n\n## Events\n\n| kind | |\n|---|---|\n{rows}\n"
    )


def usage_text() -> str:
    """Returns what `fl --help` prints."""
    said = usage.answer(["--help"])
    return "" if said is None else said


def title(group: str) -> str:
    """Returns what the menu calls a group."""
    what = GROUPS.get(group)
    return f"{group}: {what}" if what else group


def members() -> Iterator[tuple[str, str]]:
    """Yields every group with each of its members."""
    for top in GROUPS:
        for group, names in groups(top):
            yield from ((group, name) for name in names)


def experiments() -> list[Path]:
    """Returns the pages of the experiments."""
    return sorted((ROOT / "experiments").rglob("README.md"))


def member(group: str, name: str) -> str:
    """Returns the place of a member's page."""
    return f"methods/{group}/{name}.md"


def reference(package: str) -> str:
    """Returns the place of a package's page."""
    return f"reference/{package}.md"


def code(path: Path) -> str:
    """Returns the place of the page that shows a file."""
    return f"source/{path.relative_to(ROOT).as_posix()}.md"


def package_of(path: str) -> str | None:
    """Returns the page of a folder of the package, or None if `path` is none that has one."""
    package = path.replace("/", ".")
    return reference(package) if package in PACKAGES else None


def linked_files(pages: list[Path], made: dict[str, str]) -> set[Path]:
    """Returns the files of code that pages link to."""
    texts = [(page.parent, page.read_text("utf-8")) for page in pages if page.suffix == ".md"]
    texts += [((ROOT / place).parent, page) for place, page in made.items()]
    targets = {
        Path(os.path.normpath(folder / found[1]))
        for folder, page in texts
        for found in _LINK.finditer(page)
        if "://" not in found[1]
    }
    pages_too = (".md", ".png", ".ipynb")
    return {path for path in targets if path.is_file() and path.suffix not in pages_too}


def source(path: Path) -> str:
    """Returns the page that shows a file."""
    name, fence = path.relative_to(ROOT).as_posix(), "`" * 4
    lines = path.read_text("utf-8")
    return f"# {name}\n\n{fence}{_FENCES.get(path.suffix, 'text')}\n{lines}{fence}\n"


def notebook_page(path: Path) -> str:
    """Returns the place of a notebook's page."""
    return path.relative_to(ROOT).with_suffix(".md").as_posix()


def cells(path: Path) -> str:
    """Returns the page that shows a notebook's cells; outputs are not stored."""
    shown = []
    for cell in json.loads(path.read_text("utf-8"))["cells"]:
        said = "".join(cell["source"])
        shown.append(said if cell["cell_type"] == "markdown" else f"```python\n{said}\n```")
    name = path.relative_to(ROOT).as_posix()
    return "\n\n".join([*shown, f"This page shows the cells of `{name}`, which runs as it is.\n"])


@cache
def homes() -> dict[str, tuple[str, str]]:
    """Returns the first member, the one named like it if there is one, that makes a class."""
    found: dict[str, tuple[str, str]] = {}
    for group, name in members():
        made = defined(target(group, name))
        same = made.rpartition(".")[2].lower() == name.replace("_", "")
        if made and (made not in found or same):
            found[made] = group, name
    return found


def defined(path: str) -> str:
    """Returns the module and name where a class or function is defined; "" if it is not ours."""
    if not path.startswith("fl."):
        return ""
    made = get_object(path)
    module, name = getattr(made, "__module__", None), getattr(made, "__qualname__", None)
    return f"{module}.{name}" if module and module.startswith("fl.") and name else ""


def method(group: str, name: str) -> str:
    """Returns the page of a member."""
    said, place = header(group, name), PurePosixPath(member(group, name))
    made = defined(target(group, name))
    lines = [f"# {made.rpartition('.')[2] or name}", "", with_links(said.what, place), ""]
    if said.command:
        lines += ["```", said.command, "```", ""]
    if said.reproduced:
        lines += [f"Reproduced: {with_links(said.reproduced, place)}", ""]
    choice = f"+{group}={name}" if group == "experiment" else f"{group}={name}"
    lines += [f"## Keys of `{choice}`", "", "```yaml", keys(group, name), "```", ""]
    if made:
        lines += [f"## {made.rpartition('.')[2]}", ""]
        shown = homes()[made]
        if shown == (group, name):
            lines += [module_docstring(made), "", f"::: {made}", ""]
        else:
            lines += [f"See [{shown[1]}]({os.path.relpath(member(*shown), place.parent)}).", ""]
    return "\n".join(lines)


def keys(group: str, name: str) -> str:
    """Returns a member's file without the comments at its head."""
    lines = text(group, name).splitlines()
    return "\n".join(dropwhile(lambda line: line.startswith("#"), lines))


def with_links(said: str, place: PurePosixPath) -> str:
    """Returns text in which papers, pages and experiments are links from a page at `place`."""

    def here(found: re.Match[str]) -> str:
        return found[0] if "://" in found[1] else f"]({os.path.relpath(found[1], place.parent)})"

    named = re.sub(r"\[(\d{4}\.\d{4,5})\]", r"[arXiv:\1]", linked(said, ""))
    return _LINK.sub(here, named)


def module_docstring(made: str) -> str:
    """Returns what the module of a class says before it: the paper, mostly."""
    parts = made.split(".")
    names = (".".join(parts[:n]) for n in range(len(parts), 0, -1))
    return inspect.cleandoc(
        next(sys.modules[name].__doc__ or "" for name in names if name in sys.modules)
    )


def package_page(package: str) -> str:
    """Returns the page of a package."""
    module = import_module(package)
    lines = [f"# {package}", "", inspect.cleandoc(module.__doc__ or ""), ""]
    elsewhere, here = [], []
    for name in sorted(getattr(module, "__all__", ())):
        path = f"{package}.{name}"
        page = places()[defined(path) or path]
        if page == reference(package):
            here.append(defined(path) or path)
        else:
            elsewhere.append(f"[{name}]({os.path.relpath(page, 'reference')})")
    if elsewhere:
        lines += [f"With a page of their own: {', '.join(elsewhere)}.", ""]
    for made in dict.fromkeys(here):
        lines += [f"::: {made}", ""]
    return "\n".join(lines)


@cache
def places() -> dict[str, str]:
    """Returns the page of each public name, which is one: of a member, or else of a package."""
    found = {made: member(*shown) for made, shown in homes().items()}
    for package in reversed(PACKAGES):
        for name in getattr(import_module(package), "__all__", ()):
            path = f"{package}.{name}"
            found.setdefault(defined(path) or path, reference(package))
    return found
