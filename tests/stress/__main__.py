"""Run every scenario for its share of the time, and print a table.

python -m stress MINUTES [--only NAME]... [--seed N] [--round N]
"""

import argparse
import concurrent.futures
import datetime
import os
import platform
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import dispositions

from stress import crashes, endings, kills, planted, scribbles, segments, sockets
from stress.programs import build_asan
from stress.rounds import Outcome, Scenario, Skip, play, watch

TESTS = Path(__file__).parents[1]
ASAN_SECONDS = 120  # a shorter run would build more than it runs

SCENARIOS = (
    *kills.SCENARIOS,
    *crashes.SCENARIOS,
    *endings.SCENARIOS,
    *scribbles.SCENARIOS,
    *segments.SCENARIOS,
    *sockets.SCENARIOS,
)


def main() -> int:
    """The exit status: 1 if a fault was found."""
    if sys.argv[1:2] == ["--child"]:
        return _child(*sys.argv[2:])
    parser = argparse.ArgumentParser(prog="python -m stress", description="Break things, for some minutes.")
    parser.add_argument("minutes", type=float, nargs="?", default=1.0, help="how long, all scenarios together")
    known = [*SCENARIOS, *planted.SCENARIOS]
    names = [scenario.name for scenario in SCENARIOS]
    parser.add_argument(
        "--only", action="append", choices=[s.name for s in known], metavar="NAME", help=f"one of {', '.join(names)}"
    )
    parser.add_argument("--seed", type=int, default=None, help="repeat the run with this seed")
    parser.add_argument("--round", type=int, default=None, help="play this round only, as often as there is time for")
    options = parser.parse_args()
    seed = options.seed if options.seed is not None else int.from_bytes(os.urandom(3), "little")
    chosen = [scenario for scenario in known if scenario.name in (options.only or names)]
    print(f"seed {seed}, {options.minutes:g} minutes", file=sys.stderr, flush=True)
    dispositions.reset()
    with tempfile.TemporaryDirectory(prefix="cuframes-stress-") as name:
        folder = Path(name)
        (folder / "run").mkdir(mode=0o700)
        os.environ["CUFRAMES_RUNTIME_DIR"] = str(folder / "run")
        os.environ["CUFRAMES_FRAMECACHE_DIR"] = f"/dev/shm/{folder.name}"
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # host memory, also on a machine with a GPU
        os.environ["PYTHONSAFEPATH"] = "1"
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(TESTS), os.environ.get("PYTHONPATH"))))
        try:
            outcomes = _run(chosen, seed, options.minutes * 60, options.round, folder)
        finally:
            shutil.rmtree(os.environ["CUFRAMES_FRAMECACHE_DIR"], ignore_errors=True)
    return _print(outcomes, seed)


def _child(name: str, report: str, seed: str, first: str, seconds: str, folder: str, again: str) -> int:
    scenario = next(scenario for scenario in (*SCENARIOS, *planted.SCENARIOS) if scenario.name == name)
    play(scenario, int(seed), int(first), float(seconds), Path(folder), int(report), again == "1")
    return 0


def _run(
    chosen: list[Scenario], seed: int, seconds: float, number: int | None, folder: Path
) -> dict[Scenario, tuple[Outcome, float]]:
    """As many at a time as there are processors, up to four: they also are each other's load."""
    at_a_time = min(4, os.cpu_count() or 1, len(chosen))
    each = seconds * at_a_time / sum(scenario.share for scenario in chosen)

    building = threading.Lock()

    def run(scenario: Scenario) -> tuple[Outcome, float]:
        if scenario.asan:
            try:
                if seconds < ASAN_SECONDS:
                    raise Skip(f"in less than {ASAN_SECONDS // 60} minutes")
                with building:
                    build_asan(folder)
            except Skip as reason:
                return Outcome(0, [], str(reason)), 0.0
        begin = time.monotonic()
        outcome = watch(scenario, seed, number or 0, each * scenario.share, folder, number is not None)
        taken = time.monotonic() - begin
        print(f"{scenario.name}: {outcome.rounds} rounds, {len(outcome.faults)} faults", file=sys.stderr, flush=True)
        return outcome, taken

    with concurrent.futures.ThreadPoolExecutor(at_a_time) as pool:
        return dict(zip(chosen, pool.map(run, chosen), strict=True))


def _print(outcomes: dict[Scenario, tuple[Outcome, float]], seed: int) -> int:
    """The table, in Markdown, and then each kind of fault with how to repeat it."""
    found = sum(len(outcome.faults) for outcome, _ in outcomes.values())
    machine = f"{os.cpu_count()} cores, {platform.machine()}, Linux {platform.release()}"
    print(f"{datetime.date.today()}, seed {seed}; {machine}, Python {platform.python_version()}.\n")
    print("| scenario | what happens | seconds | rounds | faults |\n|---|---|---|---|---|")
    for scenario, (outcome, seconds) in outcomes.items():
        faults = f"skipped: {outcome.skipped}" if outcome.skipped else str(len(outcome.faults))
        print(f"| {scenario.name} | {scenario.text} | {seconds:.0f} | {outcome.rounds} | {faults} |")
    for scenario, (outcome, _) in outcomes.items():
        kinds = Counter(fault.kind for fault in outcome.faults)
        for kind, count in kinds.most_common():
            first = next(fault for fault in outcome.faults if fault.kind == kind)
            print(f"\n{scenario.name}, {count} x: {kind}")
            print(f'  again: make stress ARGS="0.2 --only {scenario.name} --seed {seed} --round {first.round}"')
            print("".join(f"    {line}\n" for line in first.detail.splitlines()[-60:]), end="")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
