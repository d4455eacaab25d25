"""Programs without Python use the C headers: each header compiles alone, in C and C++, with no option but ``-I``."""

import shutil
import subprocess
from pathlib import Path

import numpy
import pytest

import cuframes
from cuframes import Publisher

INCLUDE = Path(cuframes.get_include())
HEADERS = sorted(path.name for path in (INCLUDE / "cuframes").glob("*.h"))
PROGRAMS = Path(__file__).parent / "c"
WARNINGS = ["-Wall", "-Wextra", "-pedantic", "-Werror", "-O2"]
COMPILERS = {
    "gcc": ["-x", "c", "-std=c11"],
    "clang": ["-x", "c", "-std=c11"],
    "g++": ["-x", "c++", "-std=c++17"],
    "clang++": ["-x", "c++", "-std=c++17"],
}


def require(compiler):
    if shutil.which(compiler) is None:
        pytest.skip(f"there is no {compiler} here")


def compile_text(compiler, text, *options):
    command = [compiler, *COMPILERS[compiler], *WARNINGS, *options, f"-I{INCLUDE}", "-c", "-", "-o", "/dev/null"]
    done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=60)
    return done.stderr if done.returncode else ""


def test_there_are_headers():
    assert {"frame_ring.h", "messages.h", "packet_ring.h", "shm.h", "slot_ring.h"} < set(HEADERS)


@pytest.mark.parametrize("header", HEADERS)
@pytest.mark.parametrize("compiler", COMPILERS)
def test_each_header_compiles_alone(compiler, header):
    require(compiler)
    assert not compile_text(compiler, f'#include "cuframes/{header}"\n')


@pytest.mark.parametrize("compiler", COMPILERS)
def test_all_headers_go_together_in_any_order(compiler):
    require(compiler)
    lines = [f'#include "cuframes/{header}"\n' for header in HEADERS]
    assert not compile_text(compiler, "".join(lines))
    assert not compile_text(compiler, "".join(reversed(lines)))


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_after_a_header_of_the_c_library_the_error_names_the_option(compiler):
    require(compiler)
    text = '#include <stdio.h>\n#include "cuframes/frame_ring.h"\n'
    assert "-D_GNU_SOURCE" in compile_text(compiler, text)
    assert not compile_text(compiler, text, "-D_GNU_SOURCE")


@pytest.mark.parametrize("compiler", ["g++", "clang++"])
def test_a_cpp_program_reads_the_number_of_a_frame(compiler, key, tmp_path):
    require(compiler)
    program = tmp_path / "look"
    source = PROGRAMS / "look.cpp"
    subprocess.run(
        [compiler, "-std=c++17", *WARNINGS, f"-I{INCLUDE}", source, "-pthread", "-o", program], check=True, timeout=60
    )
    with Publisher(key, 64, 48, "gray8", ring_size=4) as publisher:
        for n in range(1, 6):
            publisher.publish(numpy.full((48, 64), n, numpy.uint8), pts_ns=100 * n)
        found = subprocess.check_output([program, f"/dev/shm/cuframes-{key}"], text=True, timeout=30)
    assert found.split() == ["5", "5", "500"]
