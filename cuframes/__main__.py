"""The command ``cuframes``, and ``python -m cuframes``: the command line, which can be interrupted while it loads."""

import sys


def main() -> None:
    """Entry point."""
    try:
        from cuframes.cli import main as command
    except KeyboardInterrupt:
        sys.exit(130)  # as cuframes.cli has it
    command()


if __name__ == "__main__":
    main()
