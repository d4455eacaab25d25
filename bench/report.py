"""Results of the benchmarks as tables and pictures, and two of them beside each other."""

from pathlib import Path
from typing import Any

Result = dict[str, Any]


def flat(result: Any, path: str = "") -> dict[str, float]:
    """Every number of a result, by its path."""
    if isinstance(result, dict):
        parts = [flat(value, f"{path} / {name}" if path else str(name)) for name, value in result.items()]
        return {name: value for part in parts for name, value in part.items()}
    return {path: float(result)} if isinstance(result, (int, float)) and not isinstance(result, bool) else {}


def markdown(result: Result, cases: dict[str, Any]) -> str:
    """One table per case, its conditions above; what a case measures is its function's docstring."""
    lines = ["", ", ".join(f"{name} {value}" for name, value in result["conditions"].items()), ""]
    for case in cases:
        if case in result:
            lines += [f"**{case}**: {cases[case].__doc__}", "", "| | |", "|---|---|"]
            lines += [f"| {name} | {value:g} |" for name, value in flat(result[case]).items()] + [""]
    return "\n".join(lines)


def plot(result: Result, path: Path) -> None:
    """Latencies, p50 to p99, as a picture."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(result["latency"]), figsize=(5 * len(result["latency"]), 5), squeeze=False)
    for axis, (title, peers) in zip(axes[0], result["latency"].items(), strict=True):
        named = {name: figures for name, figures in peers.items() if "p50_us" in figures}
        for at, (name, figures) in enumerate(named.items()):
            colour = "tab:blue" if name.startswith("cuframes") else "tab:gray"
            axis.plot([figures["p50_us"], figures["p99_us"]], [at, at], color=colour, marker="|")
            axis.plot(figures["p50_us"], at, color=colour, marker="o")
        axis.set_yticks(range(len(named)), list(named))
        axis.invert_yaxis()
        axis.set_xscale("log")
        axis.set_xlabel("µs from sending until the receiver has a view, p50 (dot) to p99")
        axis.set_title(title)
    figure.tight_layout()
    figure.savefig(path)


def compare(before: Result, after: Result) -> str:
    """What changed between two results, figure by figure."""
    old, new = flat(before), flat(after)
    lines = ["| | before | after | after / before |", "|---|---|---|---|"]
    for name in (name for name in old if name in new and not name.startswith("conditions")):
        ratio = f"{new[name] / old[name]:.2f}" if old[name] else "-"
        lines.append(f"| {name} | {old[name]:g} | {new[name]:g} | {ratio} |")
    return "\n".join(lines)
