"""Turn the raw rounds of a run into a table and charts.

    python bench/report.py bench/results/latest.json [--figures FOLDER] [--no-charts]
    python bench/report.py bench/results/latest.json --publish

The table is written next to the results, as table.md, and shown. Published, the results with table
and charts go to docs/benchmarks, and their main figures into the README.
"""

import argparse
import datetime
import json
import pathlib
import statistics
import sys

from cases import GOALS, MAIN
from contestants import BENCH, CONTESTANTS, ROOT

PUBLISHED = ROOT / "docs" / "benchmarks"
README = ROOT / "README.md"
# The part of the README that is written from the published results.
BEGIN, END = "<!-- make publish writes what follows -->\n", "<!-- to here -->"

# Okabe and Ito's colours, which the colour-blind can tell apart; markers say the same again.
STYLES = {
    "ours": ("#0072B2", "o"),
    "peer": ("#D55E00", "s"),
    "hand": ("#009E73", "^"),
    "more-itertools": ("#CC79A7", "D"),
    "torchdata": ("#E69F00", "v"),
    "lhotse": ("#56B4E9", "P"),
    "lhotse-infinite": ("#56B4E9", "p"),
    "grain": ("#F0E442", "X"),
    "webdataset": ("#999999", "h"),
    "datasets": ("#7F3C8D", "*"),
    "torch": ("#E69F00", "v"),
}
LIMIT = "#000000"
OTHERS = [name for name in CONTESTANTS if name not in ("limit", "ours", "peer", "hand")]


# ------------------------------------------------------------------------------------ numbers


def times(result):
    """Seconds per unit of work in each round."""
    return [seconds / count for count, seconds in result["rounds"]]


def quartiles(values):
    """The first quartile, the median and the third."""
    if len(values) < 2:
        return [values[0]] * 3
    return statistics.quantiles(values, n=4, method="inclusive")


class Figures:
    """What was measured, by case and contestant."""

    def __init__(self, data):
        self.results = {}
        for result in data["results"]:
            if result["rounds"]:
                self.results.setdefault(result["case"], {})[result["contestant"]] = result

    def median(self, case, contestant):
        result = self.results.get(case, {}).get(contestant)
        return None if result is None else statistics.median(times(result))

    def ratio(self, slow, fast):
        """The median of the ratios in each round, of two that are given as (case, contestant).

        What was measured in one round had the same minute; medians may come from different ones.
        """
        a, b = (self.results.get(case, {}).get(contestant) for case, contestant in (slow, fast))
        if a is None or b is None:
            return None
        return statistics.median(x / y for x, y in zip(times(a), times(b), strict=False))

    def against_ours(self, case, contestant):
        """How many times as long as ours another takes."""
        return self.ratio((case, contestant), (case, "ours"))


def in_units(seconds):
    for unit, size in (("s", 1), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-9:.3g} ns"


def in_bytes(rate):
    return f"{rate / 1e9:.3g} GB/s" if rate >= 1e8 else f"{rate / 1e6:.3g} MB/s"


def times_as(ratio):
    if ratio is None:
        return ""
    return f"{ratio:.2f}x" if ratio < 10 else f"{ratio:,.0f}x"


# -------------------------------------------------------------------------------------- table


def cell(result):
    """The median, half the distance between the quartiles, and bytes a second if they count."""
    if result is None:
        return ""
    low, middle, high = quartiles(times(result))
    text = f"{in_units(middle)} ±{(high - low) / 2 / middle:.0%}"
    if result["bytes"]:
        text += f", {in_bytes(result['bytes'] / middle)}"
    return text


def rows(header, lines):
    head = [f"| {' | '.join(header)} |", f"|{'|'.join('---' for _ in header)}|"]
    return head + [f"| {' | '.join(line)} |" for line in lines]


def section_tables(figures):
    sections = {}
    for case, found in figures.results.items():
        sections.setdefault(next(iter(found.values()))["section"], []).append(case)
    for section, cases in sections.items():
        header = ["case", "per", "limit", "ours", "peer", "hand", "peer / ours", "hand / ours"]
        header.append("ours / limit")
        lines = []
        for case in cases:
            found = figures.results[case]
            line = [f"`{case}`", next(iter(found.values()))["unit"]]
            line += [cell(found.get(name)) for name in ("limit", "ours", "peer", "hand")]
            line += [times_as(figures.against_ours(case, name)) for name in ("peer", "hand")]
            line.append(times_as(figures.ratio((case, "ours"), (case, "limit"))))
            lines.append(line)
        yield f"## {section}", rows(header, lines)
        others = [n for n in OTHERS if any(n in figures.results[case] for case in cases)]
        if others:
            lines = []
            for case in cases:
                found = figures.results[case]
                if any(name in found for name in others):
                    line = [f"`{case}`", cell(found.get("ours"))]
                    for name in others:
                        ratio = times_as(figures.against_ours(case, name))
                        line.append(f"{cell(found.get(name))} ({ratio})" if ratio else "")
                    lines.append(line)
            yield (
                f"### {section}: others, and how many times as long as ours",
                rows(["case", "ours", *others], lines),
            )


def goal_table(figures):
    lines = []
    for goal in GOALS:
        ratio = figures.ratio(goal.slow, goal.fast)
        if ratio is None:
            continue
        met = ratio <= goal.ratio if goal.most else ratio >= goal.ratio
        lines.append(
            [
                goal.text,
                f"{goal.slow[1]} / {goal.fast[1]}",
                f"at {'most' if goal.most else 'least'} {goal.ratio:g}x",
                times_as(ratio),
                "yes" if met else "**no**",
            ]
        )
    return rows(["case", "ratio", "goal", "measured", "met"], lines) if lines else []


def slower_table(figures):
    """Where somebody else is faster."""
    lines = []
    for case, found in figures.results.items():
        for name in found:
            ratio = figures.against_ours(case, name)
            if name not in ("ours", "limit") and ratio is not None and ratio < 1:
                lines.append(
                    [f"`{case}`", name, cell(found[name]), cell(found["ours"]), times_as(1 / ratio)]
                )
    return rows(["case", "faster", "theirs", "ours", "by"], lines) if lines else []


def memory_table(data):
    found = {}
    for entry in data["memory"]:
        found.setdefault(entry["case"], {})[entry["contestant"]] = entry
    names = [name for name in CONTESTANTS if any(name in entries for entries in found.values())]
    lines = []
    for case, entries in found.items():
        line = [f"`{case}`"]
        for name in names:
            entry = entries.get(name)
            text = ""
            if entry:
                text = f"{(entry['peak'] - entry['before']) / 1e6:,.0f}"
                if entry["children"]:
                    text += f" + {entry['children'] / 1e6:,.0f}"
            line.append(text)
        lines.append(line)
    return rows(["case", *names], lines) if lines else []


def skipped_table(data):
    lines = {}
    for entry in data["skipped"]:
        lines.setdefault((entry["contestant"], entry["reason"]), []).append(entry["case"])
    return rows(
        ["contestant", "why", "cases"],
        [[name, why.replace("|", "/"), ", ".join(cases)] for (name, why), cases in lines.items()],
    )


def table(data):
    """The report as lines of Markdown."""
    figures = Figures(data)
    machine = data["machine"]
    ours = data["versions"].get("ours", {})
    out = [
        "# Side by side",
        "",
        f"`{data['make']}` on {data['date'][:10]}, commit {data['commit'] or 'unknown'}, "
        f"Python {ours.get('python', '?')}, {machine['cpu']}, {machine['processors']} processors, "
        f"{machine['memory_gb']} GB, {machine['system']}.",
        "",
        "Medians of the rounds, ± half the distance between the quartiles. `limit` is the `next` "
        "of a bare generator, or memcpy of the same bytes into a warm buffer. `hand` is the loop "
        "that one would write in Python without a library. Ratios are medians of the ratios in "
        "each round, in which all contestants took turns; above 1x, ours takes less time.",
        "",
    ]
    goals = goal_table(figures)
    if goals:
        out += ["## Goals", "", *goals, ""]
    for title, lines in section_tables(figures):
        out += [title, "", *lines, ""]
    slower = slower_table(figures)
    if slower:
        out += ["## Where another is faster", "", *slower, ""]
    memory = memory_table(data)
    if memory:
        out += ["## Peak memory", "", "MB more than after importing", ""]
        out[-2] += ", and MB of the largest process that was started:"
        out += [*memory, ""]
    out += ["## Who took part", ""]
    for name, versions in data["versions"].items():
        of = ", ".join(f"{package} {version}" for package, version in versions.items())
        note = CONTESTANTS[name].note
        out.append(f"- {name}: {note + '; ' if note else ''}{of}")
    out.append("")
    if data["skipped"]:
        out += ["## Skipped", "", *skipped_table(data), ""]
    return out


def readme_part(data):
    """The main figures, as lines of Markdown for the README."""
    figures = Figures(data)
    machine, ours = data["machine"], data["versions"]["ours"]
    peer = data["versions"].get("peer", {})
    date = datetime.datetime.fromisoformat(data["date"])
    lines = []
    for case, what in MAIN.items():
        found = figures.results.get(case)
        if found is None:
            continue
        line = [what, next(iter(found.values()))["unit"]]
        for name in ("ours", "peer", "hand", "limit"):
            median = figures.median(case, name)
            line.append("" if median is None else in_units(median))
        best = min(
            ((figures.median(case, name), name) for name in OTHERS if name in found), default=None
        )
        line.append("" if best is None else f"{in_units(best[0])} ({best[1]})")
        line.append(times_as(figures.against_ours(case, "peer")))
        lines.append(line)
    slower = [
        f"{name} on {MAIN[case]} ({times_as(1 / ratio)})"
        for case, found in figures.results.items()
        if case in MAIN
        for name in found
        if name not in ("ours", "limit") and (ratio := figures.against_ours(case, name)) < 1
    ]
    header = ["", "per", "ours", "pescador", "by hand", "limit", "fastest other", "pescador / ours"]
    return [
        "",
        f"`{data['make']}` on {date:%d %B %Y}: medians of one run on {machine['cpu']}, "
        f"{machine['processors']} cores, {machine['system']}, Python {ours['python']}, "
        f"NumPy {ours['numpy']}; pescador is {peer.get('pescador', 'not there')} with "
        f"NumPy {peer.get('numpy', '?')}.",
        "",
        *rows(header, lines),
        "",
        "*By hand* is the loop that one would write in Python without a library, which isolates "
        "and restarts nothing. The *limit* is the `next` of a bare generator or, for what moves "
        "bytes, `memcpy` into a warm buffer. Ratios are medians of those in each round.",
        f"Faster than ours: {'; '.join(slower)}." if slower else "Nothing in this table is faster.",
        "Every case, and every one where something else is faster, is in "
        "[docs/benchmarks/table.md](docs/benchmarks/table.md).",
        "",
        "![Cost per sample against the number of streams](docs/benchmarks/shuffled_n.svg)",
        "",
    ]


def with_part(text, part):
    """The text of the README with another part between the marks."""
    head, _, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not end:
        sys.exit(f"{README} has no part between {BEGIN.strip()!r} and {END!r}")
    return head + BEGIN + "\n".join(part) + "\n" + END + tail


def publish(data):
    PUBLISHED.mkdir(parents=True, exist_ok=True)
    (PUBLISHED / "results.json").write_text(json.dumps(data, indent=1) + "\n")
    (PUBLISHED / "table.md").write_text("\n".join(table(data)), encoding="utf-8")
    text = README.read_text(encoding="utf-8")
    README.write_text(with_part(text, readme_part(data)), encoding="utf-8")


# ------------------------------------------------------------------------------------- charts


def series(data, name, x, fixed=()):
    """Points (x, result) by contestant: `name` with no parameter but `x` and those fixed."""
    lines = {}
    for result in data["results"]:
        params = dict(result["params"])
        value = params.pop(x, None)
        if result["name"] == name and value is not None and result["rounds"] and fixed(params):
            lines.setdefault(result["contestant"], []).append((value, result))
    return {key: sorted(points, key=lambda p: p[0]) for key, points in lines.items()}


def draw(plt, lines, value, title, x, y, path, limit):
    fig, ax = plt.subplots(figsize=(7.5, 4.6), layout="constrained")
    for name, points in lines.items():
        xs = [point[0] for point in points]
        spread = [quartiles([value(p[1], t) for t in times(p[1])]) for p in points]
        low, middle, high = zip(*spread, strict=True)
        if name == "limit":
            ax.plot(xs, middle, color=LIMIT, linestyle="--", linewidth=1.2, label=limit)
            continue
        color, marker = STYLES[name]
        width = 2.4 if name == "ours" else 1.4
        line = ":" if name == "lhotse-infinite" else "-"
        ax.plot(xs, middle, line, color=color, marker=marker, linewidth=width, label=name)
        ax.fill_between(xs, low, high, color=color, alpha=0.2, linewidth=0)
    ax.set(xscale="log", yscale="log", title=title, xlabel=x, ylabel=y)
    ax.grid(which="major", color="#dddddd", linewidth=0.6)
    ax.set_axisbelow(True)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    handles, labels = ax.get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside right upper", frameon=False)
    for suffix in ("png", "svg"):
        fig.savefig(
            path.with_suffix(f".{suffix}"),
            dpi=150,
            metadata={} if suffix == "png" else {"Date": None},
        )
    plt.close(fig)


def charts(data, folder):
    """Draw what there are at least two points for."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    plt.rcParams["svg.hashsalt"] = "pescador"
    folder.mkdir(parents=True, exist_ok=True)

    def plain(params):
        return not params

    def nanoseconds(result, seconds):
        return seconds * 1e9

    def rate(result, seconds):
        return result["bytes"] / seconds / 1e9

    next_line, memcpy = "limit: bare generator", "limit: memcpy"
    per_sample, speed = "nanoseconds per sample", "GB per second"
    wanted = [
        ("shuffled_n", "shuffled", "n", plain, nanoseconds, next_line, per_sample,
         "Mixing all of n streams, uniformly", "streams"),
        ("stochastic_n", "stochastic", "n", plain, nanoseconds, next_line, per_sample,
         "StochasticMux, 100 of n streams open, rate 8", "streams"),
        ("stochastic_n_active", "stochastic", "n_active", lambda p: set(p) == {"n"}, nanoseconds,
         next_line, per_sample, "StochasticMux, rate 8, against the active set",
         "streams open at a time"),
        ("batches_size", "batches", "size", plain, rate, memcpy, speed,
         "Batches of 64 items", "bytes per item"),
        ("transport_size", "transport", "size", plain, rate, memcpy, speed,
         "From one process to another", "bytes per item"),
    ]  # fmt: skip
    drawn = []
    for file, name, x, fixed, value, limit, unit, title, label in wanted:
        lines = series(data, name, x, fixed)
        if any(len(points) > 1 for points in lines.values()):
            draw(plt, lines, value, title, label, unit, folder / file, limit)
            drawn.append(file)
    return drawn


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=pathlib.Path)
    parser.add_argument("--figures", type=pathlib.Path, default=BENCH / "figures")
    parser.add_argument("--no-charts", action="store_true")
    parser.add_argument("--publish", action="store_true", help="update docs/benchmarks and README")
    args = parser.parse_args()
    data = json.loads(args.results.read_text())
    text = "\n".join(table(data))
    path = args.results.parent / "table.md"
    path.write_text(text, encoding="utf-8")
    print(text)
    print(f"written: {path}", file=sys.stderr)
    if args.publish:
        publish(data)
    if not args.no_charts:
        folder = PUBLISHED if args.publish else args.figures
        drawn = charts(data, folder)
        print(f"drawn in {folder}: {', '.join(drawn) or 'nothing'}", file=sys.stderr)


if __name__ == "__main__":
    main()
