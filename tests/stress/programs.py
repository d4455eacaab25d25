"""Programs and extension modules, built once for a whole run, in each way that the compilers of this machine know."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import cuframes
from stress.rounds import Skip

__all__ = ["WAYS", "build_asan", "build_program", "run_program"]

SOURCES = Path(__file__).parents[1] / "c"
REPOSITORY = Path(__file__).parents[2]
WARNINGS = ["-std=c11", "-D_GNU_SOURCE", "-g", "-Wall", "-Wextra", "-Werror"]
WAYS = {
    "plain": ["gcc", "-O2"],
    "coverage": ["gcc", "-O0", "-fsanitize-coverage=trace-pc"],
    "gcc-tsan": ["gcc", "-O1", "-fsanitize=thread"],
    "clang-tsan": ["clang", "-O1", "-fsanitize=thread", "-D__SANITIZE_THREAD__"],
    "gcc-asan": ["gcc", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
    "clang-asan": ["clang", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
}


def build_program(name: str, way: str, folder: Path) -> Path:
    """A program of tests/c."""
    out = folder / f"{name}-{way}"
    if out.exists():
        return out
    compiler, *options = WAYS[way]
    if shutil.which(compiler) is None:
        raise Skip(f"no {compiler} here; on Debian: apt install {compiler}")
    partial = out.with_suffix(f".{os.getpid()}")  # another process may be building it too
    include = f"-I{cuframes.get_include()}"
    command = [compiler, *options, *WARNINGS, include, SOURCES / f"{name}.c", "-pthread", "-o", partial]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    if done.returncode:
        if "cannot find" in done.stderr or "No such file" in done.stderr:
            raise Skip(f"{compiler} comes without its sanitizers here")
        raise RuntimeError(done.stderr)
    partial.rename(out)
    return out


def run_program(program: Path, *arguments: object, timeout: float) -> subprocess.CompletedProcess[str]:
    """Run a program to its end. The thread sanitizer wants addresses where it expects them."""
    command = [str(program), *map(str, arguments)]
    if "tsan" in program.name and shutil.which("setarch"):
        command = ["setarch", "-R", *command]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout)


def build_asan(folder: Path) -> None:
    """The package with extension modules under the address sanitizer, in `folder`/asan."""
    out = folder / "asan"
    if out.exists():
        return
    if not (REPOSITORY / "setup.py").exists():
        raise Skip("no source tree here")
    if subprocess.run([sys.executable, "-c", "import Cython, setuptools"], capture_output=True).returncode:
        raise Skip("no Cython in this environment")
    partial = folder / f"asan-{os.getpid()}"
    work = folder / f"asan-work-{os.getpid()}"
    shutil.copytree(
        REPOSITORY / "cuframes", work / "cuframes", ignore=shutil.ignore_patterns("*.so", "*.c", "__pycache__")
    )
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, work)
    flags = "-fsanitize=address -fno-omit-frame-pointer -g -O1"
    command = [sys.executable, "setup.py", "-q", "build", "--build-lib", partial, "-j", str(os.cpu_count() or 1)]
    environment = os.environ | {"CFLAGS": flags, "LDFLAGS": "-fsanitize=address"}
    done = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True, timeout=600)
    shutil.rmtree(work)
    if done.returncode:
        raise RuntimeError(done.stderr[-3000:])
    assert list(partial.glob(f"cuframes/*{sysconfig.get_config_var('EXT_SUFFIX')}"))
    partial.rename(out)
