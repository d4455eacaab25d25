class Pending:
    """The pending frames of one reader. :meth:`end` must be called before the reader's memory is freed."""

def python_ends() -> None:
    """The interpreter is about to end: stop collecting, since the process ends as well."""
