import gc
import importlib
import itertools
import os
import pkgutil
import shutil
import time
import uuid
from pathlib import Path

import dispositions
import pytest
from clip import clip_path, encode_clip

import cuframes
from cuframes import _native

try:
    from cuframes._native import debug
except ImportError:
    debug = None  # this is no debug build
else:
    for _module in [
        "cuframes._core",
        *(name for _, name, _ in pkgutil.iter_modules(_native.__path__, "cuframes._native.")),
    ]:
        debug.count(importlib.import_module(_module))

_numbers = itertools.count()


@pytest.fixture(autouse=True)
def runtime_dir(tmp_path_factory, monkeypatch):
    """A runtime directory of its own for every test, also for the processes it starts."""
    path = tmp_path_factory.mktemp("run")
    monkeypatch.setenv("CUFRAMES_RUNTIME_DIR", str(path))
    # Child processes must find the installed package, not a source tree that happens to be the working directory.
    monkeypatch.setenv("PYTHONSAFEPATH", "1")
    return path


@pytest.fixture(autouse=True)
def host_memory(request, monkeypatch):
    """Without the mark ``gpu`` a test is about host memory, also on a machine with a GPU."""
    if request.node.get_closest_marker("gpu") is None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # for the processes it starts
        monkeypatch.setattr("cuframes.memory._has_gpu", lambda: False)


@pytest.fixture
def key():
    """A fresh key; what a test leaves in shared memory under it is an error."""
    name = f"t{os.getpid()}-{next(_numbers)}-{uuid.uuid4().hex[:6]}"
    yield name
    left = list(Path("/dev/shm").glob(f"cuframes-{name}*"))
    for path in left:
        path.unlink()
    assert not left


@pytest.fixture
def slots(monkeypatch):
    """A directory for framecache slots of its own, in shared memory, also for the processes that the test starts."""
    path = Path(f"/dev/shm/framecache-test-{os.getpid()}-{uuid.uuid4().hex[:6]}")
    monkeypatch.setenv("CUFRAMES_FRAMECACHE_DIR", str(path))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def slot_id(slots):
    """A fresh name for a slot; semaphores that are there without one are an error."""
    name = f"t{os.getpid()}-{next(_numbers)}-{uuid.uuid4().hex[:6]}"
    yield name
    left = list(Path("/dev/shm").glob(f"sem.framecache-{name}*"))
    orphans = [path.name for path in left if not (slots / path.name[len("sem.framecache-") : -len("-write")]).exists()]
    for path in left:
        path.unlink()
    assert not orphans


@pytest.fixture(scope="session")
def clip():
    """A real H.264 clip: 1280x720, 132 frames, 25 fps."""
    return str(clip_path())


@pytest.fixture(scope="session")
def encoded(clip, tmp_path_factory):
    """Real video with many keyframes and B-frames: ``encoded("hevc", ".mp4")`` is the path of a clip, made once."""
    made = {}
    folder = tmp_path_factory.mktemp("encoded")

    def path(codec, suffix):
        if (codec, suffix) not in made:
            made[codec, suffix] = encode_clip(clip, codec, folder / f"{codec}{suffix}")
        return made[codec, suffix]

    return path


def pytest_report_header():
    return f"cuframes {cuframes.__version__} from {Path(cuframes.__file__).parent}"


def pytest_configure():
    dispositions.reset()
    if os.environ.get("CUFRAMES_TEST_INSTALLED"):
        assert "site-packages" in cuframes.__file__, f"testing {cuframes.__file__} instead of the installed package"


# ---- debug builds: a module's tests leave no object of an extension class behind ------------------------------------

_alive = {}  # by module
_KEPT = {"cuframes._native.cuda.Device"}  # one for each GPU, for as long as the process lives


def living():
    return {name: count for name, count in debug.live_objects().items() if name not in _KEPT}


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item, nextitem):
    done = yield
    last = nextitem is None or nextitem.path != item.path
    # A failure's traceback keeps what it has seen.
    if debug is not None and last and not item.session.testsfailed:
        for _ in range(100):
            gc.collect()
            if not living():
                return done
            time.sleep(0.05)  # threads of the library are ending
        _alive[item.path.name] = living()
    return done


def pytest_sessionfinish(session):
    if _alive and not session.exitstatus:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter):
    for module, found in _alive.items():
        terminalreporter.write_line(f"alive after {module}: {found}", red=True)
