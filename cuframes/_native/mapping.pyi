class Mapping:
    size: int
    writable: bool
    def __init__(
        self, fd: int, size: int, *, writable: bool = False, populate: bool = False, guarded: bool = True
    ) -> None: ...
