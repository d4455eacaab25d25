"""What is in the sdist and the wheel, compared with the tree they were built from. Exit status 1 when they differ.

python tools/check_dist.py [directory, default dist]
"""

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# For working on the project where its history is; nobody who has the sdist can use these.
NOT_IN_SDIST = {".gitignore", ".ci", ".clang-format", ".github"}
IN_WHEEL = {".py", ".pyi", ".pxd", ".h", ".html", ".css", ".js", ".typed"}
ONLY_IN_DEBUG_BUILDS = {"cuframes/_native/debug.pyx", "cuframes/_native/debug.pyi"}


def tree() -> set[str]:
    """Every file of the project, as paths: what git knows or does not ignore."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    return {name for name in listed if (ROOT / name).is_file()}


def difference(what: str, found: set[str], expected: set[str]) -> list[str]:
    return [f"{what} has {name}" for name in sorted(found - expected)] + [
        f"{what} lacks {name}" for name in sorted(expected - found)
    ]


def check_sdist(path: Path) -> list[str]:
    with tarfile.open(path) as archive:
        found = {member.name.partition("/")[2] for member in archive.getmembers() if member.isfile()}
    made = {name for name in found if name in ("PKG-INFO", "setup.cfg") or ".egg-info/" in name}
    expected = {name for name in tree() if Path(name).parts[0] not in NOT_IN_SDIST}
    return difference(path.name, found - made, expected)


def check_wheel(path: Path) -> list[str]:
    sources = {name for name in tree() if name.startswith("cuframes/")} - ONLY_IN_DEBUG_BUILDS
    expected = {name for name in sources if Path(name).suffix in IN_WHEEL}
    expected |= {f"{name.removesuffix('.pyx')} (extension module)" for name in sources if name.endswith(".pyx")}
    found, problems = set(), []
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            if ".dist-info/" in name or name.endswith("/"):
                continue
            if not name.endswith(".so"):
                found.add(name)
                continue
            found.add(f"{name.partition('.')[0]} (extension module)")
            if b"\0.debug_info\0" in archive.read(name):
                problems.append(f"{path.name}: {name} has debug information")
    return problems + difference(path.name, found, expected)


def main() -> int:
    if not (ROOT / ".git").exists():
        print("this is no checkout: there is nothing to compare the distributions with")
        return 0
    directory = Path(sys.argv[1] if len(sys.argv) > 1 else "dist")
    sdists, wheels = sorted(directory.glob("*.tar.gz")), sorted(directory.rglob("*.whl"))
    if not sdists and not wheels:
        print(f"nothing to check in {directory}", file=sys.stderr)
        return 1
    problems = [problem for path in sdists for problem in check_sdist(path)]
    problems += [problem for path in wheels for problem in check_wheel(path)]
    print(*problems, sep="\n", end="\n" if problems else "", file=sys.stderr)
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main())
