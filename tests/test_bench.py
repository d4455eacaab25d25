"""The benchmarks run; what they measure is nobody's business here."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def bench(*arguments, cwd=ROOT):
    command = [sys.executable, "-m", "cuframes", "bench", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("case", ["latency", "ping", "calls", "fanout", "streams", "idle", "steady", "small"])
def test_host(case, tmp_path):
    pytest.importorskip("typer")
    out = json.loads(bench(case, "--quick", "--json", tmp_path / "a.json", "--markdown", tmp_path / "a.md"))
    assert out[case]
    assert out["conditions"]["cores"] == len(os.sched_getaffinity(0))
    assert f"**{case}**" in (tmp_path / "a.md").read_text()
    compared = bench("--compare", tmp_path / "a.json", tmp_path / "a.json")
    assert "1.00" in compared


def test_packets():
    pytest.importorskip("typer")
    out = json.loads(bench("packets", "--quick"))
    assert out["65536 bytes"]["cuframes"]["in_ns"] > 0


def test_pictures():
    pytest.importorskip("typer")
    out = json.loads(bench("pictures", "--quick"))
    assert out["nv12 1280x720 to rgb24"]["cuframes"]["p50_ms"] > 0


@pytest.mark.usefixtures("slots")
def test_framecache(tmp_path):
    pytest.importorskip("typer")
    bench("framecache", "--quick", "--json", tmp_path / "out.json")
    out = json.loads((tmp_path / "out.json").read_text())
    assert out["slot, readers copy"]["torn"] == 0
    assert len(out["slot, readers look in place"]["latency_p50_us"]) == 4


def test_elsewhere(tmp_path):
    pytest.importorskip("typer")
    if "site-packages" not in sys.modules["cuframes"].__file__:
        pytest.skip("the source tree is where the library is")
    done = subprocess.run(
        [sys.executable, "-m", "cuframes", "bench"], capture_output=True, text=True, timeout=60, cwd=tmp_path
    )
    assert done.returncode == 3
    assert "checkout" in done.stderr
