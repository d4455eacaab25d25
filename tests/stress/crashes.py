"""The rings in C: a crash, and a stop, at every statement; and races under every sanitizer there is."""

from stress.programs import build_program, run_program
from stress.rounds import Round, Scenario

THINGS = (
    ("frames", "publish"),
    ("frames", "take"),
    ("frames", "sleep"),
    ("frames", "strict"),
    ("packets", "publish"),
    ("packets", "take"),
    ("slot", "publish"),
    ("slot", "take"),
)
TIMEOUT = 100


def crash_points(game: Round) -> None:
    """One thing that is done to a ring, dying at each of its statements, or stopping there."""
    # Not at random: every round another one, so that each has had its turn after 16 rounds.
    ring, what = THINGS[game.number % len(THINGS)]
    how = "kill" if game.number // len(THINGS) % 2 == 0 else "stop"
    before = game.number // (2 * len(THINGS)) % 17
    program = build_program("crash_points", "coverage", game.folder)
    file = game.folder / f"segment-{game.key}"
    done = run_program(program, ring, what, how, before, file, timeout=TIMEOUT)
    file.unlink(missing_ok=True)
    if done.returncode:
        game.fault(f"crash points: {ring} {what}, {how}", f"after {before} frames\n{done.stdout}{done.stderr}")


def race(game: Round, way: str) -> None:
    """A race program of tests/c with random figures."""
    chance = game.random
    name = chance.choice(("ring_race", "packet_race", "cache_race"))
    slower = 1 if way == "plain" else 10
    if name == "ring_race":
        arguments = [chance.randrange(2), chance.randint(1, 6), 20_000 // slower]
    elif name == "packet_race":
        arguments = [chance.randint(1, 6), 200_000 // slower, chance.choice((8, 64, 512, 8192))]
    else:
        arguments = [chance.randint(1, 6), 100_000 // slower, chance.choice((24, 512, 4096)), chance.randint(2, 8)]
    done = run_program(build_program(name, way, game.folder), *arguments, timeout=TIMEOUT)
    if done.returncode or "Sanitizer" in done.stderr:
        figures = " ".join(map(str, arguments))
        game.fault(f"{name} under {way}", f"{name} {figures}: status {done.returncode}\n{done.stdout}{done.stderr}")


def _race(way: str) -> Scenario:
    text = "the rings' C code as threads" + ("" if way == "plain" else f", {way}")
    return Scenario(f"race-{way}", text, lambda game: race(game, way), 0.3, TIMEOUT + 20)


SCENARIOS = (
    Scenario(
        "crash-points",
        "a process dies, or is stopped, at every statement of a ring in C",
        crash_points,
        0.7,
        TIMEOUT + 20,
    ),
    *map(_race, ("plain", "gcc-tsan", "clang-tsan", "gcc-asan", "clang-asan")),
)
