"""The files of deploy/: what can be checked of them without a container engine."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from cuframes.framecache import SlotParameters

DEPLOY = Path(__file__).parent.parent / "deploy"

pytestmark = pytest.mark.skipif(not DEPLOY.exists(), reason="these tests run in a checkout")


def variables():
    """FC_* variables of .env.example, with their values."""
    lines = (DEPLOY / ".env.example").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def test_the_compose_file_is_sound_and_every_variable_is_explained():
    yaml = pytest.importorskip("yaml")
    text = (DEPLOY / "compose.yaml").read_text()
    used = dict(re.findall(r"\$\{(FC_\w+):-([^}]*)\}", text))
    assert used == variables()
    services = yaml.safe_load(text)["services"]
    service, capture = services["framecache"], services["capture"]
    assert service["ipc"] == capture["ipc"] == "host"
    assert "FC_SHM_SIZE_GB" in service["shm_size"]
    assert "/health" in service["healthcheck"]["test"][-1]
    assert capture["profiles"] == ["capture"]
    assert "profiles" not in service
    assert capture["depends_on"] == {"framecache": {"condition": "service_healthy"}}
    assert (DEPLOY / service["build"]["context"] / service["build"]["dockerfile"]).samefile(DEPLOY / "Dockerfile")


def test_the_commands_of_the_compose_file_are_commands():
    yaml = pytest.importorskip("yaml")
    pytest.importorskip("typer")
    from typer.main import get_command
    from typer.testing import CliRunner

    from cuframes.cli.app import app

    assert get_command(app)
    for name, service in yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"].items():
        words = service["command"]
        options = [word for word in words if word.startswith("--")]
        command = words[: next(i for i, word in enumerate(words) if word.startswith(("--", "$")))]
        shown = CliRunner().invoke(app, [*command, "--help"], env={"COLUMNS": "200", "TERM": "dumb"}).output
        assert all(option in shown for option in options), (name, shown)


def test_the_sizes_that_env_example_gives_are_right():
    text = (DEPLOY / ".env.example").read_text()
    rows = re.findall(r"(\d+)x(\d+) +about (\d+) MB", text)
    assert len(rows) == 3
    for width, height, megabytes in rows:
        slot = SlotParameters("x", int(width), int(height), 25, 1, "uyvy422")
        assert round(slot.size / 1e6) == int(megabytes)


def test_the_unit_is_what_systemd_understands(tmp_path):
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd-analyze here")
    unit = (DEPLOY / "framecache.service").read_text()
    assert "ReadWritePaths=/dev/shm" in unit
    path = tmp_path / "framecache.service"
    path.write_text(unit.replace("/opt/cuframes/bin/cuframes", "/bin/true"))
    done = subprocess.run(["systemd-analyze", "verify", str(path)], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_image_is_built_in_two_stages_and_runs_under_any_uid():
    text = (DEPLOY / "Dockerfile").read_text()
    stages = re.findall(r"^FROM (\S+)(?: AS (\w+))?$", text, re.MULTILINE)
    assert len(stages) == 2
    assert stages[0][1] == "builder"
    assert "slim" in stages[1][0]
    assert "gcc" not in text.split("FROM")[2]
    assert re.search(r"^USER 7435:7435$", text, re.MULTILINE)
    assert 'CMD ["framecache", "serve"]' in text
