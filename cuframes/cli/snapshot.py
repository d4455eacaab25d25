"""``cuframes snapshot``: one frame as a picture."""

import json
from pathlib import Path
from typing import Annotated

import typer

from cuframes.cli import pixels, stop_on_signals
from cuframes.subscriber import Subscriber

__all__ = ["snapshot"]


def snapshot(
    key: Annotated[str, typer.Argument(help="Key of the publisher.")],
    out: Annotated[Path, typer.Argument(help="Picture to write: .png or .jpg.")],
    timeout: Annotated[float, typer.Option(min=0, help="Seconds to wait for a frame.")] = 5.0,
    json_: Annotated[bool, typer.Option("--json", help="Report as JSON.")] = False,
) -> None:
    """Save the newest frame as a picture."""
    stop_on_signals()
    with Subscriber(key, start="latest", connect_timeout=timeout) as subscriber, subscriber.next(timeout) as frame:
        pixels.save_picture(frame, out)
        report = {
            "path": str(out),
            "seq": frame.seq,
            "pts_ns": frame.pts_ns,
            "width": frame.width,
            "height": frame.height,
        }
    print(json.dumps(report) if json_ else f"{out}: frame {report['seq']}, {report['width']}x{report['height']}")
