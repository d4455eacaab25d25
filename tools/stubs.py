"""The docstrings of the extension modules, written into their stubs, so that editors show them.

    python tools/stubs.py           write them
    python tools/stubs.py --check   exit status 1 if a stub's docstrings are not those of its module

Signatures in the stubs are written by hand. A docstring is taken from the .pyx, and goes to the class, function,
method or property of the same name.
"""

import ast
import inspect
import re
import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent / "cuframes"
CLASS = re.compile(r"(?:cdef )?class (\w+)")
FUNCTION = re.compile(r"( *)(?:def|cpdef(?: [\w*]+)*?) (\w+)\(")
DOCSTRING = re.compile(r' *"""')


def docstring_at(lines: list[str], at: int) -> list[str]:
    """The docstring that begins in line `at`, as lines; none if something else does."""
    if at >= len(lines) or not DOCSTRING.match(lines[at]):
        return []
    end = at
    while lines[end].count('"""') + (end > at) < 2:
        end += 1
    return lines[at : end + 1]


def text_of(docstring: list[str]) -> str:
    """What a docstring says, however it is laid out: formatting a stub makes no difference."""
    return inspect.cleandoc("\n".join(docstring).strip().strip('"').strip())


def docstrings(source: str) -> dict[str, list[str]]:
    """What a .pyx says, by "Class", "function" or "Class.method"."""
    lines = source.splitlines()
    found: dict[str, list[str]] = {}
    class_name = ""
    for number, line in enumerate(lines):
        if line and line[0] not in " #)@":
            match = CLASS.match(line)
            class_name = match[1] if match else ""
        else:
            match = None
        name = class_name
        if match is None:
            match = FUNCTION.match(line)
            if match is None or len(match[1]) != (4 if class_name else 0):
                continue
            name = f"{class_name}.{match[2]}".lstrip(".")
        body = number
        while not lines[body].partition("#")[0].rstrip().endswith(":"):  # a signature of several lines
            body += 1
        found.setdefault(name, docstring_at(lines, body + 1))
    return found


def definitions(stub: str) -> list[tuple[str, ast.ClassDef | ast.FunctionDef]]:
    """What a .pyi defines, from the last to the first; of a property, its getter."""
    found: list[tuple[str, ast.ClassDef | ast.FunctionDef]] = []
    for node in ast.parse(stub).body:
        if isinstance(node, ast.ClassDef):
            found.append((node.name, node))
            found += [(f"{node.name}.{part.name}", part) for part in node.body if isinstance(part, ast.FunctionDef)]
        elif isinstance(node, ast.FunctionDef):
            found.append((node.name, node))
    return [
        (name, node)
        for name, node in reversed(found)
        if not any(
            isinstance(decorator, ast.Attribute) and decorator.attr == "setter" for decorator in node.decorator_list
        )
    ]


def with_docstrings(stub: str, source: str) -> str:
    """The stub with the docstrings of the source. What is in the stub only, such as a protocol, keeps its own."""
    lines = stub.splitlines()
    documented = docstrings(source)
    for name, node in definitions(stub):
        docstring = documented.get(name)
        if docstring is None or text_of(docstring) == (ast.get_docstring(node) or ""):
            continue
        first = node.body[0]
        if isinstance(first, ast.Expr):  # another docstring, or "...", perhaps on the line of the signature
            start, end = first.lineno - 1, first.end_lineno
            before = lines[start][: first.col_offset].rstrip()
            body = docstring or ([] if node.body[1:] else [" " * (node.col_offset + 4) + "..."])
            lines[start:end] = ([before] if before else []) + body
        else:
            start = min(part.lineno for part in [first, *getattr(first, "decorator_list", [])]) - 1
            lines[start:start] = docstring
    return "\n".join(lines) + "\n"


def main() -> int:
    check = "--check" in sys.argv[1:]
    stale = []
    for path in sorted(PACKAGE.rglob("*.pyi")):
        source = path.with_suffix(".pyx")
        if not source.exists():
            continue
        before = path.read_text()
        after = with_docstrings(before, source.read_text())
        if after != before:
            stale.append(path)
        if not check:
            path.write_text(after)
    if not stale:
        return 0
    if check:
        names = ", ".join(str(path.relative_to(PACKAGE.parent)) for path in stale)
        print(f"not the docstrings of the modules: {names}; run tools/stubs.py", file=sys.stderr)
        return 1
    return subprocess.run([sys.executable, "-m", "ruff", "format", "--quiet", *stale]).returncode


if __name__ == "__main__":
    sys.exit(main())
