class Pending:
    """The pending frames of one reader. :meth:`end` comes before the reader's memory goes."""

def python_ends() -> None:
    """The interpreter is about to go: nothing is collected from now on, since the process goes as well."""
