"""The tables of a run.

    python bench/report.py FILE      a run, or a summary; the last one is bench/results/latest.json

Writes the table and the charts next to FILE.
"""

import json
import pathlib
import sys

from charts import draw_all
from contestants import CONTESTANTS, OURS
from goals import GOALS, PACES
from summary import compared, summary_of

# The contestants that have no column of their own.
OTHERS = [name for name in CONTESTANTS if name not in ("limit", "ours", "peer", "hand")]


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


def cell(entry, n_bytes):
    """The median, half the distance between the quartiles, and bytes (a second) if they count."""
    if entry is None:
        return ""
    low, middle, high = entry["seconds"]
    text = f"{in_units(middle)} ±{(high - low) / 2 / middle:.0%}"
    if n_bytes:
        text += f", {in_bytes(n_bytes / middle)}"
    if "size" in entry:
        text += f", {entry['size']:,} B"
    if "cpu" in entry:
        text += f", {in_units(entry['cpu'])} CPU"
    return text


def rows(table):
    """The lines of Markdown of a table, of which the first row is the header."""
    header, *lines = table
    head = [f"| {' | '.join(header)} |", f"|{'|'.join('---' for _ in header)}|"]
    return head + [f"| {' | '.join(line)} |" for line in lines]


# Each table is a generator of rows, the header first.


def main_table(cases):
    """The contestants that have a column, and ratios."""
    header = ["case", "per", "limit", "ours", "peer", "hand"]
    yield [*header, "peer / ours", "hand / ours", "ours / limit"]
    for case, found in cases.items():
        by, n_bytes = found["by"], found.get("bytes")
        cells = [cell(by.get(name), n_bytes) for name in ("limit", "ours", "peer", "hand")]
        peer, hand, limit = (by.get(name, {}).get("ratio") for name in ("peer", "hand", "limit"))
        ratios = map(times_as, (peer, hand, limit and 1 / limit))
        yield [f"`{case}`", found["unit"], *cells, *ratios]


def others_table(cases):
    """The other contestants, and how they do a case."""
    yield ["case", "ours", "other", "theirs", "other / ours", "how"]
    for case, found in cases.items():
        by = found["by"]
        for name in filter(by.get, OTHERS):
            ours, theirs = (cell(by.get(it), found.get("bytes")) for it in (OURS, name))
            yield [f"`{case}`", ours, name, theirs, times_as(by[name]["ratio"]), by[name]["way"]]


def goal_table(summary):
    yield ["case", "ratio", "goal", "measured", "met"]
    for goal in GOALS:
        ratio = summary["goals"].get(compared(goal))
        if ratio is not None:
            met = ratio <= goal.ratio if goal.most else ratio >= goal.ratio
            between = f"{goal.slow[1]} / {goal.fast[1]}"
            aim = f"at {'most' if goal.most else 'least'} {goal.ratio:g}x"
            yield [goal.text, between, aim, times_as(ratio), "yes" if met else "**no**"]
    for pace in PACES:
        entry, over = (
            summary["cases"].get(it, {"by": {}})["by"].get(pace.by)
            for it in (pace.identifier, pace.over)
        )
        if entry is not None and (over is not None or pace.over is None):
            seconds = median(entry) - (median(over) if over else 0)
            met = "yes" if seconds <= pace.seconds else "**no**"
            aim = f"at most {in_units(pace.seconds)}{' more' if over else ''}"
            yield [pace.text, pace.by, aim, in_units(max(seconds, 0)), met]


def slower(summary):
    """Yield (case, contestant, how many times as fast as ours) where somebody else is faster."""
    for case, found in summary["cases"].items():
        for name, entry in found["by"].items():
            if name not in ("ours", "limit") and entry["ratio"] is not None and entry["ratio"] < 1:
                yield case, name, 1 / entry["ratio"]


def slower_table(summary):
    yield ["case", "faster", "theirs", "ours", "by"]
    for case, name, factor in slower(summary):
        found = summary["cases"][case]
        theirs, ours = (cell(found["by"][it], found.get("bytes")) for it in (name, OURS))
        yield [f"`{case}`", name, theirs, ours, times_as(factor)]


def memory_table(memory):
    names = [name for name in CONTESTANTS if any(name in used for used in memory.values())]
    yield ["case", *names]
    for case, used in memory.items():
        yield [f"`{case}`", *(f"{used[it] / 1e6:,.0f}" if it in used else "" for it in names)]


def skipped_table(skipped):
    yield ["contestant", "why", "cases"]
    for name, reasons in skipped.items():
        for why, cases in reasons.items():
            yield [name, why.replace("|", "/"), ", ".join(cases)]


def table(summary):
    """The report, in Markdown."""
    machine = summary["machine"]
    ours = summary["who"].get("ours", {}).get("versions", {})
    out = [
        "# Side by side",
        "",
        f"`{summary['make']}` on {summary['date'][:10]}, commit {summary['commit'] or 'unknown'}, "
        f"Python {ours.get('python', '?')}, {machine['cpu']}, {machine['processors']} processors, "
        f"{machine['memory_gb']} GB, {machine['system']}.",
        "",
        "Medians of the rounds, ± half the distance between the quartiles. Ratios are medians of "
        "those in each round, in which all contestants took turns; above 1x, ours takes less time. "
        "`limit` is what nobody can be faster than, `hand` a loop in Python without a library.",
        "",
    ]

    def add(title, table, *words):
        lines = rows(table)
        if len(lines) > 2:
            out.extend([title, "", *words, *lines, ""])

    add("## Goals", goal_table(summary))
    sections = {}
    for case, found in summary["cases"].items():
        sections.setdefault(found["section"], {})[case] = found
    for section, cases in sections.items():
        add(f"## {section}", main_table(cases))
        add(f"### {section}: others, and how they do it", others_table(cases))
    add("## Where another is faster", slower_table(summary))
    memory = memory_table(summary["memory"])
    add("## Peak memory", memory, "MB more than after importing:", "")
    out += ["## Who took part", ""]
    for name, it in summary["who"].items():
        of = [f"{package} {version}" for package, version in it["versions"].items()]
        out.append(f"- {name}: {it['note'] + '; ' if it['note'] else ''}{', '.join(of)}")
    out.append("")
    add("## Skipped", skipped_table(summary["skipped"]))
    return "\n".join(out)


def show(file):
    """Write the table and the charts of a run or a summary next to it."""
    summary = summary_of(json.loads(file.read_text(encoding="utf-8")))
    text = table(summary)
    print(text)
    file.with_name("table.md").write_text(text, encoding="utf-8")
    draw_all(summary, file.parent)


if __name__ == "__main__":
    show(pathlib.Path(sys.argv[1]))
