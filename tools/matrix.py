"""Runs the tests on other Pythons and on another processor: `make matrix`, or as root `python tools/matrix.py ROW`.

Each row is a Debian of its own in a temporary directory, made by mmdebstrap with Debian's packages, in which the tree
is built, installed and tested. Nothing is left behind, whatever the outcome: processes and mounts belong to namespaces
that end with the row. The machine's own settings of apt and pip are used, also inside.

    3.13, 3.14    Debian's Python: the whole suite
    3.13t         CPython without the GIL, compiled from Debian's source package: the suite's core
    aarch64       Debian's Python on an emulated 64-bit ARM: the suite's core
    aarch64-c     the C race programs, compiled for 64-bit ARM and emulated

Emulation shows wrong instructions, sizes and system calls. It shows hardly any missing memory barrier, since the
processor underneath orders more than an ARM does. One thing it orders less: QEMU (7.2 and 11.1) lets a load-acquire
(LDAR) pass an earlier store-release (STLR), which the architecture forbids and every handshake of ours relies on. So
what is emulated has one processor; the C programs also run on all, with such stores compiled as exchanges.
"""

import argparse
import ast
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NATIVE_ARM = platform.machine() == "aarch64"

# What needs neither PyAV (but for one test) nor the service, the commands or a GPU.
CORE = (
    "ring frame packets slots publisher session waiting segment endings threads layout properties "
    "packet_properties model race"
)
NEEDS_PYAV = "--deselect=tests/test_packets.py::test_bad_arguments"
CORE_PACKAGES = ["pytest>=8", "pytest-timeout>=2.3", "hypothesis>=6.100", "posix_ipc>=1.1"]

# Programs of tests/c with their arguments. An emulated thread is about ten times slower.
RACES = [
    ("ring_race", 0, 1, 30_000),
    ("ring_race", 0, 4, 30_000),
    ("ring_race", 1, 3, 2_000),
    ("packet_race", 3, 300_000, 512),
    ("packet_race", 4, 50_000, 8192),
    ("cache_race", 4, 100_000, 512, 2),
    ("cache_race", 5, 100_000, 24, 5),
    ("close_race", 1000),
    ("close_steps",),
]
# The baseline, and one with the atomic instructions and the weaker loads of later processors.
ARM_FLAGS = ["-march=armv8-a", "-march=armv8.3-a"]
EXCHANGE = "-D__atomic_store_n(p,v,order)=((void)__atomic_exchange_n(p,v,__ATOMIC_SEQ_CST))"


class Failed(Exception):
    """A step of a row did not work; the text says which."""


@dataclass
class Row:
    """One line of the table."""

    what: str
    suite: str = ""  # Debian's release
    arch: str = ""  # Debian's name; "" is the machine's own
    python: str = "python3"
    source: str = ""  # Debian source package from which this Python is compiled first
    packages: tuple[str, ...] = ()
    whole: bool = True  # the whole suite, otherwise CORE
    options: tuple[str, ...] = ()  # for pytest
    environment: str = ""  # variables of pytest's


BASE = ("python3", "python3-venv", "python3-dev", "gcc", "libc6-dev", "ca-certificates", "make", "mount", "procps")
COMPILE = ("dpkg-dev", "libssl-dev", "zlib1g-dev", "libffi-dev", "libsqlite3-dev", "xz-utils", "pkg-config")

ROWS = {
    "3.13": Row("Debian's Python 3.13", "trixie"),
    "3.14": Row("Debian's Python 3.14", "sid"),
    "3.13t": Row(
        "free-threaded",
        "trixie",
        python="/opt/python/bin/python3",
        source="python3.13",
        packages=COMPILE,
        whole=False,
        environment="PYTHON_GIL=0",  # some tests import posix_ipc, which does not say that it needs no GIL
    ),
    "aarch64": Row("64-bit ARM, emulated", "trixie", "arm64", whole=False, options=("-o", "timeout=600")),
    "aarch64-c": Row("64-bit ARM, emulated: the C race programs"),
}


# ---- the machine's settings -----------------------------------------------------------------------------------------


def mirror() -> list[str]:
    """Where this machine gets Debian's packages, as mmdebstrap wants to hear it; [] on other systems."""
    wanted = ["--format", "$(REPO_URI)", "Created-By: Packages", "Origin: Debian", "Label: Debian"]
    found = subprocess.run(["apt-get", "indextargets", *wanted], capture_output=True, text=True).stdout.split()
    return found[:1]


def pip_settings() -> tuple[dict[str, str], list[str]]:
    """The machine's settings of pip as environment variables, and the files and directories that they name."""
    listed = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True).stdout
    settings = {k: v for k, v in os.environ.items() if k.upper().endswith(("_PROXY", "_CA_BUNDLE", "SSL_CERT_FILE"))}
    for line in sorted(listed.splitlines(), reverse=True):  # the environment's, ":env:.", last
        name, _, value = line.partition("=")
        section, _, option = name.rpartition(".")
        if section in ("global", ":env:"):
            settings["PIP_" + option.replace("-", "_").upper()] = ast.literal_eval(value)
    words = [word for value in settings.values() for word in value.split()]
    # An index in files refers to files beside it.
    words = [str(Path(word.removeprefix("file://")).parent) if word.startswith("file:") else word for word in words]
    return settings, sorted({word for word in words if word.startswith("/") and os.path.exists(word)})


# ---- a Debian in a directory ----------------------------------------------------------------------------------------


class Debian:
    """A Debian in a directory, and commands that run in it, in namespaces of their own."""

    def __init__(self, root: Path, log: Path, *, emulated: bool = False) -> None:
        self.root = root
        self.log = log
        self.emulated = emulated
        self.env, self.shared = pip_settings()

    def make(self, row: Row) -> None:
        if (self.root / "complete").exists():
            return
        shutil.rmtree(self.root, ignore_errors=True)
        acquire = subprocess.run(["apt-config", "dump", "Acquire"], capture_output=True, text=True, check=True).stdout
        settings = self.log.with_suffix(".apt")
        settings.write_text(acquire)
        command = ["mmdebstrap", "--variant=minbase", f"--aptopt={settings}"]
        command += [f"--arch={row.arch}"] if row.arch else []
        command += [f"--include={','.join(BASE + row.packages)}", row.suite, str(self.root), *mirror()]
        self.call(command, "making the Debian", 3600)
        if row.source:
            self.compile_python(row.source)
        (self.root / "complete").touch()

    def compile_python(self, package: str) -> None:
        """Not all of Debian's rules and patches: its source, configured without the GIL."""
        lines = (self.root / "etc/apt/sources.list").read_text()
        (self.root / "etc/apt/sources.list.d/source.list").write_text(re.sub("^deb ", "deb-src ", lines, flags=re.M))
        self.run(
            f"""mkdir /python && cd /python && apt-get update && apt-get source --download-only {package}
            tar -xf {package}_*.orig.tar.xz --strip-components=1
            ./configure --disable-gil --prefix=/opt/python --quiet
            make -s -j{os.cpu_count()} && make -s install && rm -rf /python""",
            f"compiling {package}",
            3600,
        )

    def run(self, script: str, what: str, seconds: int) -> str:
        """Run a shell script inside; its output."""
        mounts = """set -e; root=$1; shift
            mount --bind "$root" "$root"  # a root is a mount point: tests make namespaces of their own
            mount --rbind /dev "$root/dev"
            mount -t tmpfs -o mode=1777,size=4g tmpfs "$root/dev/shm"
            mount -t proc proc "$root/proc"
            mount -t tmpfs -o mode=1777,size=2g tmpfs "$root/tmp"
            mount -t tmpfs tmpfs "$root/run"
            cp -L /etc/resolv.conf "$root/etc/" 2>/dev/null || true
            for path in "$@"; do
                if [ -d "$path" ]; then mkdir -p "$root$path"
                else mkdir -p "$(dirname "$root$path")"; [ -e "$root$path" ] || touch "$root$path"; fi
                mount --bind "$path" "$root$path"
            done
            if [ "$EMULATED" ]; then taskset -pc 0 $$ >/dev/null; fi
            chroot "$root" sh -ec "$SCRIPT" """
        private = ["unshare", "--mount", "--propagation=private", "--pid", "--fork", "--kill-child"]
        env = self.env | {"HOME": "/root", "LANG": "C.UTF-8", "SCRIPT": script, "DEBIAN_FRONTEND": "noninteractive"}
        env |= {"EMULATED": "1" if self.emulated else ""}
        env |= {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
        return self.call([*private, "sh", "-c", mounts, "sh", str(self.root), *self.shared], what, seconds, env)

    def call(self, command: list[str], what: str, seconds: int, env: dict[str, str] | None = None) -> str:
        start = self.log.stat().st_size if self.log.exists() else 0
        with self.log.open("a") as log:
            try:
                status = subprocess.run(
                    command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=env, timeout=seconds
                ).returncode
            except subprocess.TimeoutExpired:
                raise Failed(f"{what} took longer than {seconds} s") from None
            except FileNotFoundError:
                raise Failed(f"{command[0]} is missing; on Debian: apt install {command[0]}") from None
        with self.log.open(errors="replace") as log:
            log.seek(start)
            output = log.read()
        if status:
            raise Failed(f"{what} failed: {summary(output)}")
        return output


def summary(output: str) -> str:
    """pytest's last line, or the last line there is."""
    lines = [line.strip("= ") for line in output.splitlines() if line.strip("= ")]
    counts = [line for line in lines if re.search(r"\d+ (passed|failed|error)", line)]
    return re.sub(r" in [\d.]+s.*", "", (counts or lines or ["no output"])[-1])


def copy_tree(target: Path) -> None:
    """The files of the working tree that git tracks or would add."""
    shutil.rmtree(target, ignore_errors=True)
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    for name in subprocess.run(listed, cwd=ROOT, capture_output=True, check=True, text=True).stdout.split("\0"):
        if name and (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)


# ---- rows -----------------------------------------------------------------------------------------------------------


def test_python(row: Row, directory: Path, log: Path, arguments: list[str]) -> tuple[str, str]:
    debian = Debian(directory / "root", log, emulated=row.arch == "arm64" and not NATIVE_ARM)
    debian.make(row)
    copy_tree(debian.root / "src")
    version = debian.run(f"{row.python} -VV", "starting Python", 60).strip().split(" (")[0].removeprefix("Python ")
    if row.whole:
        packages, files = "--group /src/pyproject.toml:test '/src[framecache]'", ["tests"]
    else:
        packages = "/src " + " ".join(f"'{package}'" for package in CORE_PACKAGES)
        files = [
            *(f"tests/test_{name}.py" for name in CORE.split()),
            "--deselect=tests/test_packets.py::test_bad_arguments",
        ]
    debian.run(
        f"""rm -rf /venv; {row.python} -m venv /venv
        /venv/bin/pip install --quiet --prefer-binary {packages}
        /venv/bin/pip install --quiet --no-deps --group /src/pyproject.toml:clips""",
        "installing",
        3600,
    )
    if not any(name.startswith("tests") for name in arguments):
        arguments = [*arguments, *files]
    command = " ".join(f"'{argument}'" for argument in [*row.options, *arguments])
    output = debian.run(
        f"cd /src; CUFRAMES_TEST_INSTALLED=1 {row.environment} /venv/bin/pytest -q {command}", "the suite", 7200
    )
    return version, summary(output)


def test_races(row: Row, directory: Path, log: Path, arguments: list[str]) -> tuple[str, str]:
    compiler = "gcc" if NATIVE_ARM else "aarch64-linux-gnu-gcc"
    emulator = [] if NATIVE_ARM else ["qemu-aarch64-static"]
    if not shutil.which(compiler):
        raise Failed(f"{compiler} is missing; on Debian: apt install gcc-aarch64-linux-gnu libc6-dev-arm64-cross")
    if emulator and not shutil.which(emulator[0]):
        raise Failed(f"{emulator[0]} is missing; on Debian: apt install qemu-user-static")
    runner, passed = Debian(directory, log), 0
    ways = (
        [([flags], []) for flags in ARM_FLAGS]
        if NATIVE_ARM
        else [
            *[([flags], ["taskset", "-c", "0", *emulator]) for flags in ARM_FLAGS],
            *[([flags, EXCHANGE], emulator) for flags in ARM_FLAGS],
        ]
    )
    for flags, prefix in ways:
        for name, *numbers in RACES:
            program = directory / name
            options = ["-std=c11", "-D_GNU_SOURCE", "-O2", "-Wall", "-Wextra", "-Werror", "-static", "-pthread", *flags]
            sources = [f"-I{ROOT}/cuframes/include", str(ROOT / f"tests/c/{name}.c")]
            what = " ".join(map(str, [name, *numbers, *flags]))
            runner.call([compiler, *options, *sources, "-o", str(program)], f"compiling {what}", 300)
            runner.call([*prefix, str(program), *map(str, numbers)], what, 1200)
            passed += 1
    version = subprocess.run([compiler, "-dumpversion"], capture_output=True, text=True).stdout.strip()
    return f"gcc {version}", f"{passed} passed"


def main() -> int:
    parser = argparse.ArgumentParser(description="Run the tests on other Pythons and processors.")
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"{', '.join(ROWS)}; all of them by default")
    parser.add_argument("--directory", type=Path, help="where the Debians are made, and kept for the next run; "
                        "by default a temporary directory")  # fmt: skip
    parser.add_argument("--pytest", default="", metavar="ARGS", help="arguments for pytest, such as '-k packets'")
    chosen = parser.parse_args()
    if unknown := set(chosen.rows) - set(ROWS):
        parser.error(f"no row {', '.join(unknown)}; there are {', '.join(ROWS)}")
    if os.geteuid():
        parser.error("run it as root: it makes and enters other Debians")
    kept = chosen.directory.resolve() if chosen.directory else None
    place = kept or Path(tempfile.mkdtemp(prefix="matrix-"))
    failed = False
    table = ["| row | what | version | outcome | minutes |", "|---|---|---|---|---|"]
    try:
        for name in chosen.rows or ROWS:
            row, directory, began = ROWS[name], place / name, time.monotonic()
            directory.mkdir(parents=True, exist_ok=True)
            log = directory / "log"
            log.unlink(missing_ok=True)
            version = "-"
            print(f"{name}: {row.what} ...", file=sys.stderr, flush=True)
            try:
                test = test_python if row.suite else test_races
                version, outcome = test(row, directory, log, chosen.pytest.split())
            except Failed as problem:
                failed, outcome = True, str(problem)
                if log.exists():
                    print(*log.read_text(errors="replace").splitlines()[-200:], sep="\n", file=sys.stderr, flush=True)
            finally:
                if kept is None:
                    shutil.rmtree(directory)
            minutes = (time.monotonic() - began) / 60
            table.append(f"| {name} | {row.what} | {version} | {outcome} | {minutes:.1f} |")
            print(table[-1], flush=True)
    finally:
        if kept is None:
            shutil.rmtree(place, ignore_errors=True)
    print("", *table, sep="\n")
    return failed


if __name__ == "__main__":
    sys.exit(main())
