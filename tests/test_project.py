"""Rules that hold for the source as a whole, read from the syntax tree of every module."""

import ast
import importlib
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# Which parts of fl a part may import, itself included. A part is a package or a top-level module.
# What is not listed belongs to the entry point: it may import everything, and nothing listed may
# import it. "" is fl/__init__.py.
BASE = {"", "checks", "errors", "extras", "lazy", "randomness", "vectors"}
RULES = {
    "aggregation",
    "attacks",
    "collectives",
    "compression",
    "data",
    "models",
    "selection",
    "stages",
    "submodels",
    "topologies",
}
WITH_FLOWER = BASE | RULES | {"flower"}
MAY_IMPORT = {
    **dict.fromkeys(BASE, BASE),
    **dict.fromkeys(RULES, BASE | RULES),
    "flower": BASE | {"collectives", "flower"},
    "clients": WITH_FLOWER | {"clients", "execution"},
    "strategies": WITH_FLOWER | {"clients", "strategies"},
    "execution": WITH_FLOWER | {"execution"},
    "simulation": WITH_FLOWER | {"execution", "simulation"},
    "reports": BASE | {"reports", "simulation"},
}

# All that a ClientApp sees of the runtimes: the contract that it fulfils, and how requests are cut
# into runs.
CONTRACT = ("fl.execution.contract.", "fl.execution.batches.even_runs.")

# Each of these runs code found in a file or a string; state is stored as arrays and JSON instead.
UNSAFE_CALLS = {
    "allow_pickle",
    "eval",
    "exec",
    "cloudpickle.load",
    "cloudpickle.loads",
    "joblib.load",
    "marshal.load",
    "marshal.loads",
    "pickle.load",
    "pickle.loads",
    "pickle.Unpickler",
    "shelve.open",
    "torch.load",
    "yaml.load",
    "yaml.unsafe_load",
}

# Names of one kind of thing in several files: a method's own state, a block of a network.
SAME_KIND = {"Moments", "_Block"}

VAGUE_NAMES = {"common", "helper", "helpers", "misc", "util", "utils"}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted((ROOT / "fl").rglob("*.py"))}
PARTS = {name.split(".")[1] for name in MODULES if "." in name}


@cache
def parse(name: str) -> ast.Module:
    return ast.parse(MODULES[name].read_text(encoding="utf-8"))


def absolute(node: ast.ImportFrom, name: str) -> str:
    """The module that `from X import ...` in module `name` reads, X relative or not."""
    if not node.level:
        return node.module or ""
    package = name.split(".") if MODULES[name].stem == "__init__" else name.split(".")[:-1]
    return ".".join([*package[: len(package) - node.level + 1], *filter(None, [node.module])])


def imported(node: ast.AST, name: str) -> list[str]:
    """Dotted names that one statement imports; `from fl import errors` gives fl.errors."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        source = absolute(node, name)
        return [f"{source}.{alias.name}" for alias in node.names]
    return []


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def run_on_import(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes that execute when a module is imported: no function body, no TYPE_CHECKING."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if is_type_checking(child):
            yield from (n for branch in child.orelse for n in run_on_import(branch))
            continue
        yield child
        yield from run_on_import(child)


@cache
def targets(name: str) -> list[str]:
    """What a module imports anywhere, in functions too."""
    return [target for node in ast.walk(parse(name)) for target in imported(node, name)]


def packages(name: str) -> set[str]:
    """The packages, or single modules, that a module imports from."""
    return {target.split(".")[0] for target in targets(name)}


def in_parts(parts: set[str]) -> list[str]:
    return [name for name in MODULES if part_of(name) in parts]


def part_of(dotted: str) -> str:
    """The part of fl a dotted name belongs to: fl.vectors.layout.Layout -> vectors."""
    part = dotted.split(".")[1] if "." in dotted else ""
    return part if part in PARTS else ""


def test_every_package_has_an_init():
    folders = {path.parent for path in MODULES.values()}
    assert not [str(f.relative_to(ROOT)) for f in folders if not (f / "__init__.py").exists()]


def test_every_module_is_importable():
    for name in MODULES:
        importlib.import_module(name)


def test_every_name_that_a_module_offers_is_there_also_if_it_loads_when_used():
    modules = map(importlib.import_module, MODULES)
    offered = [(module, name) for module in modules for name in getattr(module, "__all__", ())]
    assert not [f"{m.__name__}.{name}" for m, name in offered if not hasattr(m, name)]


def test_imports_point_one_way():
    # The entry point, and what `fl` offers when asked, know everything.
    wrong = [
        f"{name}: {target}"
        for name in MODULES
        if name != "fl" and part_of(name) in MAY_IMPORT
        for target in targets(name)
        if target.split(".")[0] == "fl" and part_of(target) not in MAY_IMPORT[part_of(name)]
    ]
    assert not wrong


def test_client_apps_know_no_runtime():
    seen = {f"{t}." for name in in_parts({"clients"}) for t in targets(name)}
    runtimes = [t for t in seen if part_of(t) == "execution"]
    assert not [t for t in runtimes if not t.startswith(CONTRACT)]


def test_rules_know_no_flower():
    assert not [n for n in in_parts(BASE | RULES) if "flwr" in packages(n)]


def test_importing_all_rules_does_not_import_flower():
    names = [n for n in MODULES if part_of(n) in RULES | {"vectors"}]
    for name, path in MODULES.items():
        of_a_rule = name.rpartition(".")[0] in ("fl.clients", "fl.strategies")
        if of_a_rule and path.name != "__init__.py":
            names.append(name)
    code = "import importlib, sys\n" + "\n".join(f"importlib.import_module({n!r})" for n in names)
    code += "\nprint(*(name for name in sys.modules if name.split('.')[0] == 'flwr'))"
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert not ran.stdout.split()


def test_no_data_library_loads_on_import():
    # Nor through another module of fl, as that would be in this list itself.
    loading = [
        f"{name}: {target}"
        for name in MODULES
        for node in run_on_import(parse(name))
        for target in imported(node, name)
        if target.split(".")[0] in ("datasets", "flwr_datasets")
    ]
    assert not loading


def test_simulation_knows_no_torch():
    assert not [n for n in in_parts({"simulation"}) if "torch" in packages(n)]


def dotted(node: ast.AST) -> list[str]:
    """The names of an expression a.b.c; what is no name at its root is ""."""
    if isinstance(node, ast.Attribute):
        return [*dotted(node.value), node.attr]
    return [node.id if isinstance(node, ast.Name) else ""]


def calls_of(name: str) -> set[str]:
    """What a module calls, by the names where it is defined, and "allow_pickle" if it does."""
    tree = parse(name)
    aliases = {
        alias.asname or alias.name: target
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias, target in zip(node.names, imported(node, name), strict=True)
    }
    calls = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            root, *attributes = dotted(node.func)
            calls.add(".".join([aliases.get(root, root), *attributes]))
            pickles = [k for k in node.keywords if k.arg == "allow_pickle"]
            calls.update("allow_pickle" for k in pickles if ast.unparse(k.value) != "False")
    return calls


def test_no_module_executes_stored_code():
    assert not [n for n in MODULES if calls_of(n) & UNSAFE_CALLS]


def test_module_names_say_what_they_hold():
    assert not [n for n in MODULES if set(n.split(".")) & VAGUE_NAMES]


def test_no_class_name_has_two_meanings():
    found: dict[str, list[str]] = {}
    for name in MODULES:
        for node in ast.walk(parse(name)):
            if isinstance(node, ast.ClassDef):
                found.setdefault(node.name, []).append(name)
    assert {k: v for k, v in found.items() if len(v) > 1 and k not in SAME_KIND} == {}


def test_every_direct_dependency_is_pinned():
    def normal(requirement: str) -> str:
        name = requirement
        for mark in "[<>=!~; ":
            name = name.partition(mark)[0]
        return name.lower().replace("_", "-")

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    listed = [project["project"]["dependencies"], *project["dependency-groups"].values()]
    wanted = [one for several in listed for one in several if isinstance(one, str)]
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {normal(line) for line in pins if "==" in line and not line.startswith("#")}
    assert {normal(requirement) for requirement in wanted} <= pinned


def test_what_changes_is_said_in_files_that_go_into_the_changelog():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["towncrier"]
    kinds = "|".join(kind["directory"] for kind in settings["type"])
    names = {path.name for path in (ROOT / settings["directory"]).iterdir()} - {"README.md"}
    assert not [name for name in names if not re.fullmatch(rf"\+[a-z0-9-]+\.({kinds})\.md", name)]
    assert settings["start_string"] in (ROOT / settings["filename"]).read_text("utf-8")
