from cuframes.formats import FrameShape

class FrameLayout:
    shape: FrameShape
    def __init__(self, shape: FrameShape) -> None: ...
