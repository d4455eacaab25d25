"""Errors in the words of the command line: the library names arguments of Python, a command names options."""

import re

__all__ = ["in_options"]

# What the library says, and what it is called here.
OPTIONS = (
    (r"it must call enable_packets\(\) first", "start it with --packets"),
    (r"with group=", "with --group GROUP"),
    (r"or overwrite it\b", "or use --overwrite"),
    (r"\bmemory='([\w-]+)'", r"--memory \1"),
    (r"; choose another port$", "; choose another one with --port"),
    (r"\bring_size\b", "--ring-size"),
    (r"\bring_depth\b", "--ring-depth"),
    (r"send the header Authorization: Bearer \S+", "give it with --token-file"),
)


def in_options(text: str) -> str:
    """The text of an error with its remedies as options of the commands."""
    for pattern, option in OPTIONS:
        text = re.sub(pattern, option, text)
    return text
