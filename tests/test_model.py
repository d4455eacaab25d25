"""The handshake of pins, model-checked: every interleaving of one writer and two readers over a ring of two slots.

Each step below is one atomic access of ``frame_ring.h`` (same names), and these accesses are sequentially consistent,
so the interleavings are all there is.
"""

from typing import NamedTuple

INVALID = -1
LAST = 5


class State(NamedTuple):
    seq: tuple[int, ...] = (INVALID, INVALID)
    pins: tuple[int, ...] = (0, 0)
    pixels: tuple[object, ...] = (None, None)
    held_seq: tuple[int, ...] = (INVALID, INVALID)  # the writer's own record
    writer: tuple[str, int] = ("W0", 1)
    readers: tuple[tuple[object, ...], ...] = (("R0",), ("R0",))


class Torn(Exception):
    pass


def put(values, at, value):
    return (*values[:at], value, *values[at + 1 :])


def writer_steps(state, broken):
    where, s = state.writer
    k = s % 2
    if s > LAST:
        return
    if where == "W0":  # the look before the handshake
        busy = state.pins[k]
        yield state._replace(writer=("W0", s + 1) if busy else ("W2" if broken == "writer" else "W1", s))
    elif where == "W1":
        yield state._replace(seq=put(state.seq, k, INVALID), writer=("W3" if broken == "writer" else "W2", s))
    elif where == "W2":
        if not state.pins[k]:
            yield state._replace(writer=("W1" if broken == "writer" else "W3", s))
        else:
            yield state._replace(seq=put(state.seq, k, state.held_seq[k]), writer=("W0", s + 1))
    elif where == "W3":
        yield state._replace(pixels=put(state.pixels, k, "half"), writer=("W4", s))
    elif where == "W4":
        yield state._replace(pixels=put(state.pixels, k, s), writer=("W5", s))
    elif where == "W5":
        yield state._replace(seq=put(state.seq, k, s), held_seq=put(state.held_seq, k, s), writer=("W0", s + 1))


def reader_steps(state, me, broken):
    where, *rest = state.readers[me]
    bit = 1 << me

    def goto(*reader, **changes):
        return state._replace(readers=put(state.readers, me, reader), **changes)

    if where == "R0":
        for k in (0, 1):
            if state.seq[k] != INVALID:
                yield goto("R2" if broken == "reader" else "R1", k, state.seq[k])
        return
    k, s = rest
    if where == "R1":
        yield goto("R3" if broken == "reader" else "R2", k, s, pins=put(state.pins, k, state.pins[k] | bit))
    elif where == "R2":
        if state.seq[k] == s:
            yield goto("R1" if broken == "reader" else "R3", k, s)
        else:
            yield goto("R5", k, s)
    elif where in ("R3", "R4"):
        if state.pixels[k] != s:
            raise Torn(state)
        yield goto("R4" if where == "R3" else "R5", k, s)
    elif where == "R5":
        yield goto("R0", pins=put(state.pins, k, state.pins[k] & ~bit))


def explore(broken=None):
    """Visit every reachable state; returns how many there are, and how many frames got published at most."""
    seen = {State()}
    todo = [State()]
    published = 0
    while todo:
        state = todo.pop()
        published = max(published, *state.held_seq)
        steps = [*writer_steps(state, broken), *reader_steps(state, 0, broken), *reader_steps(state, 1, broken)]
        for following in steps:
            if following not in seen:
                seen.add(following)
                todo.append(following)
    return len(seen), published


def test_no_interleaving_shows_a_torn_frame():
    states, published = explore()
    assert states > 5_000
    assert published == LAST


def test_the_model_finds_a_handshake_in_the_wrong_order():
    for broken in ("writer", "reader"):
        try:
            explore(broken)
        except Torn:
            continue
        raise AssertionError(f"checking before storing on the {broken}'s side went unnoticed")
