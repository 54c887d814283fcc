"""Only `fl.flower.private` touches what Flower does not publish; read from the syntax trees."""

import ast
import importlib
import inspect
import io
import re
import textwrap
import tokenize
from functools import cache
from pathlib import Path

import flwr
import pytest

ROOT = Path(__file__).resolve().parents[2]
PRIVATE = ROOT / "fl" / "flower" / "private.py"
MODULES = sorted(path for path in (ROOT / "fl").rglob("*.py") if path != PRIVATE)

# What Flower documents for those who write apps and strategies. Names are read from `__all__`.
PUBLIC = {
    "flwr",
    "flwr.app",
    "flwr.clientapp",
    "flwr.clientapp.typing",
    "flwr.common",
    "flwr.common.constant",
    "flwr.server",
    "flwr.server.strategy",
    "flwr.serverapp",
    "flwr.serverapp.strategy",
}

# Whole dictionaries that are read in modules that know Flower, and hold nothing of Flower's.
OWN_DICTIONARIES = {
    ("fl/runs/apps.py", "vars(module)"),  # a user's module
    ("fl/strategies/drivers/driver.py", "vars(self)"),  # of a strategy of ours, for the log
    ("fl/runs/journal/lasting.py", "vars(sys.modules.get(module, object))"),  # where a class is
    ("fl/runs/journal/lasting.py", "setattr(part, name, value)"),  # of parts of ours, see `lasting`
}

PACKAGES = ("app", "clientapp", "common", "server", "serverapp", "supercore/inflatable")
UNDERSCORED = re.compile(r"_[A-Za-z]\w*")


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def hidden_in(tree: ast.AST) -> set[str]:
    """Names with an underscore that a piece of Flower's source defines, asks for or stores."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.Attribute):
            found.add(node.attr)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.add(node.value)
    return set(filter(UNDERSCORED.fullmatch, found))


@cache
def hidden() -> frozenset[str]:
    """Names with an underscore in all of Flower that an app's objects come from."""
    home = Path(flwr.__file__).parent
    paths = [path for package in PACKAGES for path in (home / package).rglob("*.py")]
    return frozenset().union(*(hidden_in(tree_of(path)) for path in paths))


@cache
def hidden_in_class(dotted: str) -> frozenset[str]:
    """Names with an underscore of a class of Flower's and its bases."""
    module, _, name = dotted.rpartition(".")
    found: set[str] = set()
    for kind in getattr(importlib.import_module(module), name).__mro__:
        if kind.__module__.partition(".")[0] == "flwr":
            found |= hidden_in(ast.parse(textwrap.dedent(inspect.getsource(kind))))
    return frozenset(found)


def imported_names(tree: ast.Module) -> dict[str, str]:
    """What each name stands for that a module imports: local name -> dotted name."""
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {a.asname or a.name.partition(".")[0]: a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
    return names


def module_of(name: str) -> str:
    """The dotted name of a module, from its path in the checkout."""
    return name.removesuffix(".py").replace("/", ".").removesuffix(".__init__")


def bases_of(node: ast.ClassDef, names: dict[str, str], module: str) -> tuple[str, ...]:
    """The dotted names of the classes that one is derived from, as its module knows them."""
    said = [ast.unparse(base).partition("[")[0].split(".") for base in node.bases]
    return tuple(".".join([names.get(head, f"{module}.{head}"), *rest]) for head, *rest in said)


@cache
def classes_of_fl() -> dict[str, tuple[str, ...]]:
    """The bases of every class of fl."""
    bases: dict[str, tuple[str, ...]] = {}
    for path in [*MODULES, PRIVATE]:
        module, names = module_of(path.relative_to(ROOT).as_posix()), imported_names(tree_of(path))
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.ClassDef):
                bases[f"{module}.{node.name}"] = bases_of(node, names, module)
    return bases


@cache
def flowers_bases(dotted: str) -> frozenset[str]:
    """The classes of Flower's that a class is, or is derived from."""
    if dotted.partition(".")[0] == "flwr":
        return frozenset({dotted})
    known = classes_of_fl()
    if dotted not in known:  # a package may offer it under its own name
        package, _, name = dotted.rpartition(".")
        same = [c for c in known if c.startswith(f"{package}.") and c.endswith(f".{name}")]
        return frozenset().union(*map(flowers_bases, same))
    return frozenset().union(*map(flowers_bases, known[dotted]))


class Touches(ast.NodeVisitor):
    """Collects what a module touches of what Flower does not publish: (line, text).

    Args:
        tree: of the module.
        module: its dotted name.
    """

    def __init__(self, tree: ast.Module, module: str) -> None:
        self.found: set[tuple[int, str]] = set()
        self.names = imported_names(tree)
        self.module = module
        self.bases: frozenset[str] = frozenset()  # of Flower's, of the class that is being read
        of_flower = re.compile(r"(flwr|fl\.flower)\b(?!_)")
        self.knows_flower = any(of_flower.match(dotted) for dotted in self.names.values())
        self.visit(tree)

    def note(self, node: ast.AST) -> None:
        self.found.add((node.lineno, ast.unparse(node)))

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        derived = map(flowers_bases, bases_of(node, self.names, self.module))
        before, self.bases = self.bases, frozenset().union(*derived)
        self.generic_visit(node)
        self.bases = before

    def visit_Import(self, node: ast.Import) -> None:
        if any(alias.name.startswith("flwr.") for alias in node.names):
            self.note(node)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        source = node.module or ""
        of_flower = source.partition(".")[0] == "flwr"
        if of_flower and not all(is_public(source, alias.name) for alias in node.names):
            self.note(node)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        self.generic_visit(node)
        if not self.knows_flower:
            return
        first = node.value
        while isinstance(first, ast.Attribute):
            first = first.value
        name = first.id if isinstance(first, ast.Name) else ""
        root = self.names.get(name, "")
        if name in ("self", "cls") and first is node.value:
            names = frozenset().union(*map(hidden_in_class, self.bases))
            if node.attr in names or (self.bases and node.attr == "__dict__"):
                self.note(node)
            return
        stored = isinstance(node.ctx, ast.Store | ast.Del)
        if (
            node.attr in hidden()
            or node.attr in ("__dict__", "__new__")
            or (stored and node.attr == "__class__")
            or (stored and root.partition(".")[0] == "flwr")
            or (root == "flwr" and node.attr != "__file__")
        ):
            self.note(node)

    def visit_Subscript(self, node: ast.Subscript) -> None:
        self.generic_visit(node)
        if self.knows_flower and self.is_hidden(node.slice):
            self.note(node)

    def visit_Call(self, node: ast.Call) -> None:
        self.generic_visit(node)
        if not self.knows_flower:
            return
        called = ast.unparse(node.func)
        keywords = {keyword.arg for keyword in node.keywords}
        if (
            called == "vars"
            or called.startswith("object.__")
            or keywords & hidden()
            or (
                (called in ("getattr", "setattr", "hasattr", "delattr", "vars"))
                and any(map(self.is_hidden, node.args))
            )
            or (called == "setattr" and not isinstance(node.args[1], ast.Constant))
            or (self.names.get(called) == "flwr.app.Message" and "metadata" in keywords)
        ):
            self.note(node)

    @staticmethod
    def is_hidden(node: ast.AST) -> bool:
        return isinstance(node, ast.Constant) and node.value in hidden()


def touches(source: str, name: str) -> list[str]:
    """Returns what a module touches of what Flower does not publish: file, line and text.

    Args:
        source: of the module.
        name: its path in the checkout.
    """
    tree = ast.parse(source)
    seen = Touches(tree, module_of(name))
    found = {(line, text) for line, text in seen.found if (name, text) not in OWN_DICTIONARIES}
    if seen.knows_flower:
        for token in tokenize.generate_tokens(io.StringIO(source).readline):
            # Signatures that Flower does not document need this for the type checker.
            if token.type == tokenize.COMMENT and "call-overload" in token.string:
                found.add((token.start[0], token.string))
    return [f"{name}:{line}: {text}" for line, text in sorted(found)]


def is_public(module: str, name: str) -> bool:
    if module not in PUBLIC or name.startswith("_"):
        return False
    offered = getattr(importlib.import_module(module), "__all__", None)
    return offered is None or name in offered or f"{module}.{name}" in PUBLIC


def test_no_other_module_touches_what_flower_hides():
    names = [path.relative_to(ROOT).as_posix() for path in MODULES]
    sources = [path.read_text(encoding="utf-8") for path in MODULES]
    assert not [t for each in zip(sources, names, strict=True) for t in touches(*each)]


@pytest.mark.parametrize(
    "line",
    [
        "from flwr.app.metadata import Metadata",
        "from flwr.supercore.task_identity import TaskIdentity",
        "from flwr.app.message.recorddict import _SyncedDict",
        "from flwr.server import server",
        "import flwr.supercore.run",
        "flwr.simulation.run_simulation()",
        "message.metadata.__dict__['_message_id'] = 'a'",
        "message.__dict__.update(fields)",
        "fields['_content'] = content",
        "vars(message).update(fields)",
        "metadata.update(_message_id='a')",
        "getattr(message, '_metadata')",
        "setattr(message, name, content)",
        "object.__setattr__(message, 'a', 1)",
        "message.__class__ = Other",
        "Message.__new__(Message)",
        "Message(metadata=metadata, content=content)",
        "reply = Message(content)  # type: ignore[call-overload]",
        "app._registered_funcs['train'] = f",
        "Strategy.start = observed",
        "class App(ClientApp):\n    def mods(self):\n        return self._mods",
        "class Ours(FedAvg):\n    def f(self):\n        return self._construct_messages()",
        "class Own(ArrayRecord):\n    def f(self):\n        return self.__dict__",
    ],
)
def test_each_kind_of_touch_is_found(line):
    assert touches(f"{SAMPLE}\n{line}\n", "fl/sample.py")


@pytest.mark.parametrize(
    "line",
    [
        "message.content = content",
        "metadata.dst_node_id = 3",
        "Message(content, reply_to=message)",
        "flwr.__file__",
        "class Own:\n    def f(self):\n        return self._content, self.__dict__",
        "class Ours(FedAvg):\n    def f(self):\n        self._asked = self.weighted_by_key",
    ],
)
def test_what_flower_publishes_is_no_touch(line):
    assert not touches(f"{SAMPLE}\n{line}\n", "fl/sample.py")


SAMPLE = """
import flwr
import pytest
from flwr.app import ArrayRecord, Message
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg, Strategy
"""
