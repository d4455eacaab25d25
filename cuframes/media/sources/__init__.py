"""Video from files, cameras and streams: PyAV decodes in a thread, and what fails is opened again."""

from cuframes.media.sources.items import Acceleration, EncodedPacket, Picture, StreamInfo
from cuframes.media.sources.source import Source, SourceState, open_source

__all__ = ["Acceleration", "EncodedPacket", "Picture", "Source", "SourceState", "StreamInfo", "open_source"]
