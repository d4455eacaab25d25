"""``python -m cuframes``: the command line."""

from cuframes.cli import main

if __name__ == "__main__":
    main()
