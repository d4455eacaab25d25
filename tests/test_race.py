"""The rings' C code as threads, under sanitizers and at full speed."""

import subprocess

import pytest
from harness import compile_program

import cuframes

SANITIZERS = {
    "thread": ["-O1", "-fsanitize=thread", "-fno-sanitize-recover=all"],
    "address": ["-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
    "none": ["-O2"],
}


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    """Compiles a program of tests/c, once for each set of options."""
    built = {}

    def program(name, sanitizer):
        if (name, sanitizer) not in built:
            include = f"-I{cuframes.get_include()}"
            folder = tmp_path_factory.mktemp("race")
            built[name, sanitizer] = compile_program(name, folder, include, *SANITIZERS[sanitizer])
        return built[name, sanitizer]

    return program


def run(program, *arguments):
    done = subprocess.run([program, *map(str, arguments)], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WARNING: ThreadSanitizer" not in done.stderr


@pytest.mark.parametrize("sanitizer", ["thread", "address"])
@pytest.mark.parametrize(("policy", "readers", "frames"), [(0, 1, 30_000), (0, 4, 30_000), (1, 3, 5_000)])
def test_no_race_and_no_torn_frame(build, sanitizer, policy, readers, frames):
    run(build("ring_race", sanitizer), policy, readers, frames)


@pytest.mark.parametrize(
    ("sanitizer", "readers", "packets", "largest"),
    [
        ("none", 3, 2_000_000, 512),
        ("none", 4, 200_000, 8192),
        ("thread", 3, 300_000, 512),
        ("address", 3, 500_000, 512),
        ("address", 4, 50_000, 8192),
    ],
)
def test_no_overwritten_byte_is_delivered(build, sanitizer, readers, packets, largest):
    run(build("packet_race", sanitizer), readers, packets, largest)


@pytest.mark.parametrize("sanitizer", ["none", "thread", "address"])
@pytest.mark.parametrize(("readers", "frame_size", "depth"), [(4, 512, 2), (4, 4096, 3), (5, 24, 5)])
def test_no_torn_frame_out_of_a_tiny_slot(build, sanitizer, readers, frame_size, depth):
    run(build("cache_race", sanitizer), readers, 100_000, frame_size, depth)


@pytest.mark.parametrize("sanitizer", ["none", "thread", "address"])
def test_a_frame_keeps_its_pin_when_its_reader_is_closed(build, sanitizer):
    run(build("close_race", sanitizer), 1000)


def test_closing_at_every_step_of_a_take(build):
    run(build("close_steps", "address"))
