"""Who imports whom, `cimport` included: a layer only calls down, and there are no circles."""

import ast
import graphlib
import inspect
import re
import subprocess
import sys
import typing
from pathlib import Path

import pytest

import cuframes

PACKAGE = Path(cuframes.__file__).parent

# From below. What is in one layer may import its neighbours, though not in a circle.
LAYERS = [
    ["_version", "errors", "formats", "rates", "color", "picturing", "codecs"],
    [
        "_shm",
        *(
            f"_native.{name}"
            for name in ("status", "ring_end", "mapping", "control", "messages", "layout", "arrays", "packets", "slot")
        ),
        *(f"_native.{name}" for name in ("dlpack", "cuda", "frame_ring", "slot_table", "pending", "debug")),
    ],
    ["_core"],
    ["_native.views", "_native.device_arrays", "_native.frame", "_native.wait_any"],
    ["host"],
    ["memory", "session"],
    ["publisher", "subscriber", "packets", "waiting", "framecache"],
    ["media"],
    ["framecache.service", "cli", "__main__"],
]
CIMPORT = re.compile(r"^\s*from (cuframes[\w.]*) c?import (\([^)]*\)|[^\n]*)|^\s*c?import (cuframes[\w.]*)", re.M)


def name_of(path):
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


SOURCES = [path for kind in ("py", "pyi", "pyx", "pxd") for path in sorted(PACKAGE.rglob(f"*.{kind}"))]
MODULES = {name_of(path) for path in SOURCES} - {"__init__"}  # which is the package's face


def imported(path):
    """The modules of this package that a file imports, wherever in it."""
    text = path.read_text()
    if path.suffix in (".py", ".pyi"):
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom) and node.module is not None:
                yield from ((node.module, alias.name) for alias in node.names)
            elif isinstance(node, ast.Import):
                yield from ((alias.name, "") for alias in node.names)
    else:
        for module, names, alone in CIMPORT.findall(text):
            yield from ((module or alone, name.split(" as ")[0].strip(" ()\n")) for name in names.split(","))


def graph():
    found = {}
    for path in SOURCES:
        name = name_of(path)
        if name == "__init__":
            continue
        uses = found.setdefault(name, set())
        for module, attribute in imported(path):
            if module != "cuframes" and not module.startswith("cuframes."):
                continue
            longest = f"{module}.{attribute}".removeprefix("cuframes").lstrip(".")
            target = longest if longest in MODULES else longest.rpartition(".")[0]
            if target and target != name:
                assert target in MODULES, f"{path}: what is {longest}?"
                uses.add(target)
    return found


def layer_of(module):
    levels = {name: level for level, names in enumerate(LAYERS) for name in names}
    while module not in levels and module:
        module = module.rpartition(".")[0]
    return levels.get(module)


def test_every_module_is_in_a_layer():
    assert not [module for module in MODULES if module != "_native" and layer_of(module) is None]


def test_a_layer_only_calls_down():
    upwards = {
        f"{module} imports {used}"
        for module, uses in graph().items()
        for used in uses
        if module != "_native" and used != "_native" and layer_of(used) > layer_of(module)
    }
    assert not upwards


def test_there_are_no_circles():
    # A package and its own modules are one thing here: its face imports them.
    tree = {
        module: {used for used in uses if not used.startswith(f"{module}.") and not module.startswith(f"{used}.")}
        for module, uses in graph().items()
    }
    try:
        graphlib.TopologicalSorter(tree).prepare()
    except graphlib.CycleError as problem:
        pytest.fail(f"a circle: {' > '.join(problem.args[1])}")


@pytest.mark.parametrize(
    ("module", "never"),
    [
        ("cuframes", ["cuframes._core", "numpy", "asyncio"]),
        ("cuframes.framecache", ["cuframes._native.cuda", "cuframes.memory", "cuframes.session", "cuda"]),
        ("cuframes.subscriber", ["av", "typer", "cuda", "asyncio", "numpy"]),
    ],
)
def test_what_an_import_does_not_load(module, never):
    script = f"import sys, {module}; print(*[name for name in {never!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == []


def public_things():
    """Every public class and function, with their methods."""
    for module in (cuframes, cuframes.framecache):
        for name in module.__all__:
            thing = getattr(module, name)
            if inspect.isclass(thing):
                members = (inspect.unwrap(getattr(m, "fget", m)) for _, m in inspect.getmembers_static(thing))
                members = (getattr(member, "__func__", member) for member in members)
                yield from (m for m in members if inspect.isfunction(m) and m.__module__.startswith("cuframes"))
            if inspect.isclass(thing) or inspect.isroutine(thing):
                yield thing


def test_hints_of_every_public_name_can_be_evaluated():
    """As frameworks do that read them when a program runs: a name that only type checkers import is a NameError."""
    things = list(public_things())
    assert cuframes.wait_any in things
    assert cuframes.Subscriber.next in things
    for thing in things:
        assert isinstance(typing.get_type_hints(thing), dict)
