def monotonic_ns() -> int:
    """CLOCK_MONOTONIC in nanoseconds: the clock of ``published_ns``."""
