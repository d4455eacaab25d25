"""The C headers are for other programs too: each compiles alone, with what ``cuframes.get_include()`` promises."""

import shutil
import subprocess
from pathlib import Path

import pytest

import cuframes

INCLUDE = Path(cuframes.get_include())


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_every_header_compiles_alone(compiler, tmp_path):
    if shutil.which(compiler) is None:
        pytest.skip(f"{compiler} is not installed")
    headers = sorted(path.name for path in INCLUDE.glob("cuframes/*.h"))
    assert {"shm.h", "messages.h", "frame_ring.h", "packet_ring.h", "slot_ring.h"} <= set(headers)
    for header in headers:
        source = tmp_path / "alone.c"
        source.write_text(f'#include "cuframes/{header}"\nint main(void) {{ return 0; }}\n')
        command = [compiler, "-std=c11", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Werror", "-Wno-unused-function"]
        command += [f"-I{INCLUDE}", str(source), "-fsyntax-only"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
