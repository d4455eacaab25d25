"""The device path without a GPU: other files' tests over a CUDA driver made for tests (``tests/c/fake_cuda.c``)."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from harness import python_path

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def fake_driver(tmp_path_factory):
    """A directory with a libcuda.so.1, to be put in front of the loader."""
    out = tmp_path_factory.mktemp("fake_cuda")
    command = ["gcc", "-std=gnu11", "-D_GNU_SOURCE", "-shared", "-fPIC", "-O1", "-g", "-Wall", "-Wextra", "-Werror"]
    command += [str(HERE / "c" / "fake_cuda.c"), "-Wl,-soname,libcuda.so.1", "-o", str(out / "libcuda.so.1")]
    subprocess.run([*command, "-ldl", "-pthread"], check=True, timeout=60)
    return out


@pytest.mark.timeout(600)
@pytest.mark.parametrize("file", ["test_device.py", "test_pending.py"])
def test_device_path_over_the_fake_driver(fake_driver, file):
    pytest.importorskip("cuda.bindings")
    env = os.environ | {"LD_LIBRARY_PATH": str(fake_driver), "CUFRAMES_TEST_FAKE_DRIVER": "1"}
    command = [sys.executable, "-P", "-m", "pytest", "-q", str(HERE / file), "-p", "no:cacheprovider"]
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=580, cwd=HERE.parent)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout


def test_without_the_bindings_device_memory_says_what_is_missing(tmp_path):
    (tmp_path / "cuda").mkdir()
    (tmp_path / "cuda" / "__init__.py").write_text("raise ImportError('No module named cuda')")
    code = """
import cuframes
publisher = cuframes.Publisher("x", 64, 48)
print(publisher.memory)
publisher.close()
try:
    cuframes.Publisher("x", 64, 48, memory="cuda")
except cuframes.DeviceError as problem:
    print(problem)
"""
    env = python_path(tmp_path)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, timeout=60)
    assert done.stdout.splitlines()[0] == "host"
    assert "pip install 'cuframes[cuda13]'" in done.stdout
