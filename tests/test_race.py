"""The ring's C code as threads under sanitizers."""

import subprocess
from pathlib import Path

import pytest

import cuframes

HERE = Path(__file__).parent


@pytest.fixture(scope="module", params=["thread", "address,undefined"])
def program(request, tmp_path_factory):
    out = tmp_path_factory.mktemp("race") / "ring_race"
    include = Path(cuframes.__file__).parent
    command = ["gcc", "-std=c11", "-D_GNU_SOURCE", "-O1", "-g", "-Wall", "-Wextra", "-Werror", f"-I{include}"]
    command += [f"-fsanitize={request.param}", "-fno-sanitize-recover=all", "-pthread", str(HERE / "c" / "ring_race.c")]
    subprocess.run([*command, "-o", str(out)], check=True, timeout=120)
    return out


@pytest.mark.parametrize(
    ("policy", "readers", "frames"), [("0", "1", "30000"), ("0", "4", "30000"), ("1", "3", "5000")]
)
def test_no_race_and_no_torn_frame(program, policy, readers, frames):
    done = subprocess.run([program, policy, readers, frames], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WARNING: ThreadSanitizer" not in done.stderr
