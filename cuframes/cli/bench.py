"""``cuframes bench``: the benchmarks of the source tree."""

import runpy
import sys
from pathlib import Path

import typer

import cuframes
from cuframes.errors import NotFound

__all__ = ["bench"]

BENCHMARKS = ("host", "packets", "framecache", "sources", "pictures", "gpu")


def bench(context: typer.Context) -> None:
    """Run a benchmark: host (the default), packets, framecache, sources, pictures or gpu. Other
    arguments go to it (--help).
    """
    arguments = context.args
    name = arguments.pop(0) if arguments and arguments[0] in BENCHMARKS else "host"
    places = [Path.cwd(), Path(cuframes.__file__).parent.parent]
    script = next((path for place in places if (path := place / "bench" / f"{name}.py").exists()), None)
    if script is None:
        raise NotFound("the benchmarks are not installed with the library; run this in a checkout of its source")
    sys.argv = [str(script), *arguments]
    sys.path.insert(0, str(script.parent))
    runpy.run_path(str(script), run_name="__main__")
