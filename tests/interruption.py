"""An exception of a signal handler, at every place where Python would run one."""

import dis
import sys
import threading
import time

RUNS_HANDLERS = {name for name in dis.opmap if name.startswith("CALL")} | {"JUMP_BACKWARD"}


class Interruption(BaseException):
    """What the signal handler raises."""


def interrupt(function, at):
    """Call it, and raise Interruption at the `at`-th place: after a call, at the beginning of a function of Python, or
    at the end of a turn of a loop. Returns what it returned, or None, and where it was interrupted, or None.
    """
    places = 0
    codes, last = {}, {}

    def trace(frame, event, _):
        nonlocal places
        frame.f_trace_opcodes = True
        reached = event == "call"
        if event == "exception":  # the call has raised, so nothing runs after it
            last.pop(frame, None)
        elif event == "opcode":
            code = frame.f_code
            instructions = codes.get(code)
            if instructions is None:
                instructions = codes[code] = code.co_code
            reached = last.get(frame) in RUNS_HANDLERS
            last[frame] = dis.opname[instructions[frame.f_lasti]]
        if reached:
            places += 1
            if places == at:
                sys.settrace(None)
                raise Interruption(f"{frame.f_code.co_qualname} in {frame.f_code.co_filename}:{frame.f_lineno}")
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        return function(), None
    except Interruption as problem:
        return None, str(problem)
    except RuntimeError as problem:
        # Python's own condition variables then release a lock that they do not have.
        if not isinstance(problem.__context__, Interruption):
            raise
        return None, str(problem.__context__)
    finally:
        sys.settrace(before)
        last.clear()


def forget_unstarted_threads():
    """Python lists a thread whose start was interrupted for ever, though it never ran; other tests count threads."""
    time.sleep(0.2)  # for one that is just starting
    for thread in [thread for thread in threading.enumerate() if not thread.is_alive()]:
        threading._limbo.pop(thread, None)
