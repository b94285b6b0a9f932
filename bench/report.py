"""Turn the raw rounds of a run into a summary, a table and charts.

    python bench/report.py bench/results/latest.json [--figures FOLDER] [--no-charts]
    python bench/report.py bench/results/latest.json --publish

The table is written next to the results, as table.md, and shown. Published, the summary, the table
and one chart go to docs/benchmarks, and the main figures into the README; raw rounds stay here. All
that is shown is made from the summary, so that a published one can be shown in another way:

    python bench/report.py docs/benchmarks/summary.json --publish
"""

import argparse
import datetime
import json
import pathlib
import statistics
import sys

from cases import GOALS, MAIN, PACES
from contestants import BENCH, CONTESTANTS, FUNCTION, OURS, ROOT

PUBLISHED = ROOT / "docs" / "benchmarks"
README = ROOT / "README.md"
# The chart that is published.
CHART = "shuffled_n"
# The part of the README that is written from the published results.
BEGIN, END = "<!-- make publish writes what follows -->\n", "<!-- to here -->"

# Okabe and Ito's colours, which the colour-blind can tell apart; markers say the same again.
STYLES = {
    "ours": ("#0072B2", "o"),
    "ours-function": ("#0072B2", "o"),
    "peer": ("#D55E00", "s"),
    "hand": ("#009E73", "^"),
    "hand-blocks": ("#009E73", "v"),
    "more-itertools": ("#CC79A7", "D"),
    "torchdata": ("#E69F00", "v"),
    "lhotse": ("#56B4E9", "P"),
    "lhotse-infinite": ("#56B4E9", "p"),
    "grain": ("#F0E442", "X"),
    "grain-select": ("#F0E442", "d"),
    "webdataset": ("#999999", "h"),
    "datasets": ("#7F3C8D", "*"),
    "datasets-map": ("#7F3C8D", "8"),
    "tf.data": ("#A52A2A", "<"),
    "tf.data-choose": ("#A52A2A", ">"),
    "fairseq2": ("#1B4D3E", "H"),
    "fairseq2-native": ("#1B4D3E", "1"),
    "torch": ("#000080", "P"),
}
# Second ways of one library or hand.
DOTTED = {name for name in STYLES if "-" in name} - {"more-itertools"}
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


class Rounds:
    """What was measured, by case and contestant."""

    def __init__(self, data):
        self.results = {}
        for result in data["results"]:
            if result["rounds"]:
                self.results.setdefault(result["case"], {})[result["contestant"]] = result

    def ratio(self, slow, fast):
        """The median of the ratios in each round, of two that are given as (case, contestant).

        What was measured in one round had the same minute; medians may come from different ones.
        """
        a, b = (self.results.get(case, {}).get(contestant) for case, contestant in (slow, fast))
        if a is None or b is None:
            return None
        return short(statistics.median(x / y for x, y in zip(times(a), times(b), strict=False)))


def short(value):
    """Four digits: more than are shown, or repeat from one run to the next."""
    return float(f"{value:.4g}")


def compared(goal):
    return f"{' '.join(goal.slow)} / {' '.join(goal.fast)}"


def summary_of(data):
    """What is shown and published of a run; a summary is returned as it is.

    cases: by case, its section, unit, parameters and bytes, and by contestant the seconds per unit
    (first quartile, median, third) and the ratio to ours. goals: the ratio that each has reached.
    """
    if "cases" in data:
        return data
    rounds = Rounds(data)
    cases = {}
    for case, found in rounds.results.items():
        first = next(iter(found.values()))
        cases[case] = {key: first[key] for key in ("name", "params", "section", "unit", "bytes")}
        cases[case]["by"] = {
            contestant: {
                "seconds": [short(value) for value in quartiles(times(result))],
                "ratio": rounds.ratio((case, contestant), (case, "ours")),
            }
            | ({"way": result["way"]} if result["way"] else {})
            for contestant, result in found.items()
        }
    who = {
        name: {"note": CONTESTANTS[name].note, "versions": versions}
        for name, versions in data["versions"].items()
    }
    about = {key: data[key] for key in ("date", "make", "commit", "machine")}
    goals = {compared(goal): rounds.ratio(goal.slow, goal.fast) for goal in GOALS}
    skipped = {}
    for entry in data["skipped"]:
        skipped.setdefault(entry["contestant"], {}).setdefault(entry["reason"], []).append(
            entry["case"]
        )
    memory = {}
    for entry in data["memory"]:
        used = entry["peak"] - entry["before"], entry["children"]
        memory.setdefault(entry["case"], {})[entry["contestant"]] = used
    return about | {
        "who": who,
        "cases": cases,
        "goals": goals,
        "memory": memory,
        "skipped": skipped,
    }


def written(summary):
    """A summary as JSON with a line for each case: a change of one shows as one."""
    parts = []
    for key, value in summary.items():
        text = json.dumps(value, ensure_ascii=False)
        if isinstance(value, dict) and key != "machine":
            lines = [
                f" {json.dumps(name)}: {json.dumps(entry, ensure_ascii=False)}"
                for name, entry in value.items()
            ]
            text = "{\n" + ",\n".join(lines) + "\n}" if lines else "{}"
        parts.append(f"{json.dumps(key)}: {text}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def median(entry):
    return entry["seconds"][1]


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


def cell(entry, n_bytes):
    """The median, half the distance between the quartiles, and bytes a second if they count."""
    if entry is None:
        return ""
    low, middle, high = entry["seconds"]
    text = f"{in_units(middle)} ±{(high - low) / 2 / middle:.0%}"
    if n_bytes:
        text += f", {in_bytes(n_bytes / middle)}"
    return text


def rows(header, lines):
    head = [f"| {' | '.join(header)} |", f"|{'|'.join('---' for _ in header)}|"]
    return head + [f"| {' | '.join(line)} |" for line in lines]


def section_tables(summary):
    sections = {}
    for case, found in summary["cases"].items():
        sections.setdefault(found["section"], {})[case] = found
    for section, cases in sections.items():
        header = ["case", "per", "limit", "ours", "peer", "hand", "peer / ours", "hand / ours"]
        header.append("ours / limit")
        lines = []
        for case, found in cases.items():
            by, n_bytes = found["by"], found["bytes"]
            line = [f"`{case}`", found["unit"]]
            line += [cell(by.get(name), n_bytes) for name in ("limit", "ours", "peer", "hand")]
            line += [times_as(by.get(name, {}).get("ratio")) for name in ("peer", "hand")]
            limit = by.get("limit", {}).get("ratio")
            line.append(times_as(limit and 1 / limit))
            lines.append(line)
        yield f"## {section}", rows(header, lines)
        lines = []
        for case, found in cases.items():
            by, n_bytes = found["by"], found["bytes"]
            for name in OTHERS:
                if name in by:
                    line = [f"`{case}`", cell(by.get("ours"), n_bytes), name]
                    line += [cell(by[name], n_bytes), times_as(by[name]["ratio"])]
                    lines.append([*line, by[name]["way"]])
        if lines:
            yield (
                f"### {section}: others, and how they do it",
                rows(["case", "ours", "other", "theirs", "other / ours", "how"], lines),
            )


def goal_table(summary):
    lines = []
    for goal in GOALS:
        ratio = summary["goals"].get(compared(goal))
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
    for pace in PACES:
        entry = summary["cases"].get(pace.identifier, {"by": {}})["by"].get(OURS)
        if entry is not None:
            met = "yes" if median(entry) <= pace.seconds else "**no**"
            goal = f"at most {in_units(pace.seconds)}"
            lines.append([pace.text, "ours", goal, in_units(median(entry)), met])
    return rows(["case", "ratio", "goal", "measured", "met"], lines) if lines else []


def slower(summary):
    """Yield (case, contestant, how many times as fast as ours) where somebody else is faster."""
    for case, found in summary["cases"].items():
        for name, entry in found["by"].items():
            if name not in ("ours", "limit") and entry["ratio"] is not None and entry["ratio"] < 1:
                yield case, name, 1 / entry["ratio"]


def slower_table(summary):
    lines = []
    for case, name, factor in slower(summary):
        found = summary["cases"][case]
        line = [cell(found["by"][who], found["bytes"]) for who in (name, "ours")]
        lines.append([f"`{case}`", name, *line, times_as(factor)])
    return rows(["case", "faster", "theirs", "ours", "by"], lines) if lines else []


def memory_table(summary):
    found = summary["memory"]
    names = [name for name in CONTESTANTS if any(name in entries for entries in found.values())]
    lines = []
    for case, entries in found.items():
        line = [f"`{case}`"]
        for name in names:
            own, children = entries.get(name, (None, 0))
            text = "" if own is None else f"{own / 1e6:,.0f}"
            if children:
                text += f" + {children / 1e6:,.0f}"
            line.append(text)
        lines.append(line)
    return rows(["case", *names], lines) if lines else []


def skipped_table(summary):
    return rows(
        ["contestant", "why", "cases"],
        [
            [name, why.replace("|", "/"), ", ".join(cases)]
            for name, reasons in summary["skipped"].items()
            for why, cases in reasons.items()
        ],
    )


def table(summary):
    """The report as lines of Markdown."""
    machine = summary["machine"]
    ours = summary["who"].get("ours", {}).get("versions", {})
    out = [
        "# Side by side",
        "",
        f"`{summary['make']}` on {summary['date'][:10]}, commit {summary['commit'] or 'unknown'}, "
        f"Python {ours.get('python', '?')}, {machine['cpu']}, {machine['processors']} processors, "
        f"{machine['memory_gb']} GB, {machine['system']}.",
        "",
        "Medians of the rounds, ± half the distance between the quartiles. `limit` is the `next` "
        "of a bare generator, memcpy of the same bytes into a warm buffer or, for pipelines, a "
        "loop in C over mapped files. `hand` is the loop "
        "that one would write in Python without a library. Ratios are medians of the ratios in "
        "each round, in which all contestants took turns; above 1x, ours takes less time.",
        "",
    ]
    goals = goal_table(summary)
    if goals:
        out += ["## Goals", "", *goals, ""]
    for title, lines in section_tables(summary):
        out += [title, "", *lines, ""]
    faster = slower_table(summary)
    if faster:
        out += ["## Where another is faster", "", *faster, ""]
    memory = memory_table(summary)
    if memory:
        out += ["## Peak memory", "", "MB more than after importing", ""]
        out[-2] += ", and MB of the largest process that was started:"
        out += [*memory, ""]
    out += ["## Who took part", ""]
    for name, it in summary["who"].items():
        of = [f"{package} {version}" for package, version in it["versions"].items()]
        out.append(f"- {name}: {it['note'] + '; ' if it['note'] else ''}{', '.join(of)}")
    out.append("")
    if summary["skipped"]:
        out += ["## Skipped", "", *skipped_table(summary), ""]
    return out


def readme_part(summary):
    """The main figures, as lines of Markdown for the README."""
    machine, ours = summary["machine"], summary["who"]["ours"]["versions"]
    peer = summary["who"].get("peer", {}).get("versions", {})
    date = datetime.datetime.fromisoformat(summary["date"])
    lines = []
    for case, what in MAIN.items():
        found = summary["cases"].get(case)
        if found is None:
            continue
        by = found["by"]
        line = [what, found["unit"]]
        for name in ("ours", "peer", "hand", "limit"):
            line.append(in_units(median(by[name])) if name in by else "")
        others = [name for name in OTHERS if name in by and name != FUNCTION]
        best = min(((median(by[name]), name) for name in others), default=None)
        line.append("" if best is None else f"{in_units(best[0])} ({best[1]})")
        line.append(times_as(by.get("peer", {}).get("ratio")))
        lines.append(line)
    faster = [
        f"{name} on {MAIN[case]} ({times_as(factor)})"
        for case, name, factor in slower(summary)
        if case in MAIN
    ]
    header = ["", "per", "ours", "pescador", "by hand", "limit", "fastest other", "pescador / ours"]
    return [
        "",
        f"`{summary['make']}` on {date:%d %B %Y}: medians of one run on {machine['cpu']}, "
        f"{machine['processors']} cores, {machine['system']}, Python {ours['python']}, "
        f"NumPy {ours['numpy']}; pescador is {peer.get('pescador', 'not there')} with "
        f"NumPy {peer.get('numpy', '?')}.",
        "",
        *rows(header, lines),
        "",
        "*By hand* is the loop that one would write in Python without a library, which isolates "
        "and restarts nothing. The *limit* is the `next` of a bare generator; for what moves "
        "bytes, `memcpy` into a warm buffer; for files, a loop in C that has mapped them all. "
        "Ratios are medians of those in each round.",
        f"Faster than ours: {'; '.join(faster)}." if faster else "Nothing in this table is faster.",
        "Every case, and every one where something else is faster, is in "
        "[docs/benchmarks/table.md](docs/benchmarks/table.md).",
        "",
        f"![Cost per sample against the number of streams](docs/benchmarks/{CHART}.svg)",
        "",
    ]


def with_part(text, part):
    """The text of the README with another part between the marks."""
    head, _, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not end:
        sys.exit(f"{README} has no part between {BEGIN.strip()!r} and {END!r}")
    return head + BEGIN + "\n".join(part) + "\n" + END + tail


def publish(summary):
    PUBLISHED.mkdir(parents=True, exist_ok=True)
    (PUBLISHED / "summary.json").write_text(written(summary), encoding="utf-8")
    (PUBLISHED / "table.md").write_text("\n".join(table(summary)), encoding="utf-8")
    text = README.read_text(encoding="utf-8")
    README.write_text(with_part(text, readme_part(summary)), encoding="utf-8")


# ------------------------------------------------------------------------------------- charts


def series(summary, name, x, fixed):
    """Points (x, bytes, seconds) of `name` by contestant; of its parameters, only `x` may vary."""
    lines = {}
    for found in summary["cases"].values():
        params = dict(found["params"])
        value = params.pop(x, None)
        if found["name"] == name and value is not None and fixed(params):
            for contestant, entry in found["by"].items():
                points = lines.setdefault(contestant, [])
                points.append((value, found["bytes"], entry["seconds"]))
    return {key: sorted(points) for key, points in lines.items()}


def draw(plt, lines, value, title, x, y, path, limit, suffixes):
    fig, ax = plt.subplots(figsize=(7.5, 4.6), layout="constrained")
    for name, points in lines.items():
        xs = [point[0] for point in points]
        spread = [[value(n_bytes, t) for t in seconds] for _, n_bytes, seconds in points]
        low, middle, high = zip(*spread, strict=True)
        if name == "limit":
            ax.plot(xs, middle, color=LIMIT, linestyle="--", linewidth=1.2, label=limit)
            continue
        color, marker = STYLES[name]
        width = 2.4 if name == "ours" else 1.4
        line = ":" if name in DOTTED else "-"
        ax.plot(xs, middle, line, color=color, marker=marker, linewidth=width, label=name)
        ax.fill_between(xs, low, high, color=color, alpha=0.2, linewidth=0)
    ax.set(xscale="log", yscale="log", title=title, xlabel=x, ylabel=y)
    ax.grid(which="major", color="#dddddd", linewidth=0.6)
    ax.set_axisbelow(True)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    handles, labels = ax.get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside right upper", frameon=False)
    for suffix in suffixes:
        fig.savefig(
            path.with_suffix(f".{suffix}"),
            dpi=150,
            metadata={} if suffix == "png" else {"Date": None},
        )
    plt.close(fig)


def charts(summary, folder, only=None, suffixes=("png", "svg")):
    """Draw what there are at least two points for, or `only` one of these."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    plt.rcParams["svg.hashsalt"] = "pescador"
    folder.mkdir(parents=True, exist_ok=True)

    def plain(params):
        return not params

    def nanoseconds(n_bytes, seconds):
        return seconds * 1e9

    def rate(n_bytes, seconds):
        return n_bytes / seconds / 1e9

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
        lines = series(summary, name, x, fixed)
        if only in (None, file) and any(len(points) > 1 for points in lines.values()):
            draw(plt, lines, value, title, label, unit, folder / file, limit, suffixes)
            drawn.append(file)
    return drawn


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=pathlib.Path)
    parser.add_argument("--figures", type=pathlib.Path, default=BENCH / "figures")
    parser.add_argument("--no-charts", action="store_true")
    parser.add_argument("--publish", action="store_true", help="to docs/benchmarks and README")
    args = parser.parse_args()
    summary = summary_of(json.loads(args.results.read_text(encoding="utf-8")))
    text = "\n".join(table(summary))
    path = args.results.parent / "table.md"
    path.write_text(text, encoding="utf-8")
    print(text)
    print(f"written: {path}", file=sys.stderr)
    if args.publish:
        publish(summary)
    if not args.no_charts:
        # On the site, one chart says it; the tables hold the numbers of all.
        only = {"only": CHART, "suffixes": ["svg"]} if args.publish else {}
        folder = PUBLISHED if args.publish else args.figures
        drawn = charts(summary, folder, **only)
        print(f"drawn in {folder}: {', '.join(drawn) or 'nothing'}", file=sys.stderr)


if __name__ == "__main__":
    main()
