"""Publish a run: a summary, a table and a chart to docs/benchmarks, the main figures to the README.

    make publish                         the last run
    python bench/publish.py FILE         another one, or a summary

Raw rounds stay here. All that is shown is made from the summary, so that a published one can be
shown in another way: FILE is docs/benchmarks/summary.json.
"""

import datetime
import json
import pathlib
import sys

from charts import CHART, draw_all
from contestants import FUNCTION, ROOT
from goals import MAIN
from report import OTHERS, in_units, median, rows, slower, table, times_as
from summary import as_text, summary_of

PUBLISHED = ROOT / "docs" / "benchmarks"
README = ROOT / "README.md"
# The part of the README that is written from the published results.
BEGIN, END = "<!-- make publish writes what follows -->\n", "<!-- to here -->"


def readme_table(summary):
    """The main cases."""
    header = ["", "per", "ours", "pescador", "by hand", "limit"]
    yield [*header, "fastest other", "pescador / ours"]
    for case, what in MAIN.items():
        found = summary["cases"].get(case)
        if found is not None:
            by = found["by"]
            times = {name: in_units(median(entry)) for name, entry in by.items()}
            others = [name for name in OTHERS if name in by and name != FUNCTION]
            best = min(others, key=lambda name: median(by[name]), default=None)
            yield [
                what,
                found["unit"],
                *(times.get(name, "") for name in ("ours", "peer", "hand", "limit")),
                f"{times[best]} ({best})" if best else "",
                times_as(by.get("peer", {}).get("ratio")),
            ]


def readme_part(summary):
    """The main figures, in Markdown for the README."""
    machine, ours = summary["machine"], summary["who"]["ours"]["versions"]
    peer = summary["who"].get("peer", {}).get("versions", {})
    date = datetime.datetime.fromisoformat(summary["date"])
    faster = [
        f"{name} on {MAIN[case]} ({times_as(factor)})"
        for case, name, factor in slower(summary)
        if case in MAIN
    ]
    part = [
        "",
        f"`{summary['make']}` on {date:%d %B %Y}: medians of one run on {machine['cpu']}, "
        f"{machine['processors']} cores, {machine['system']}, Python {ours['python']}, "
        f"NumPy {ours['numpy']}; pescador is {peer.get('pescador', 'not there')} with "
        f"NumPy {peer.get('numpy', '?')}.",
        "",
        *rows(readme_table(summary)),
        "",
        f"Faster than ours: {'; '.join(faster)}." if faster else "Nothing in this table is faster.",
        "\n",
    ]
    return "\n".join(part)


def with_part(text, part):
    """The text of the README with another part between the marks."""
    head, _, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not end:
        sys.exit(f"{README} has no part between {BEGIN.strip()!r} and {END!r}")
    return head + BEGIN + part + END + tail


def publish(summary):
    """Write a summary to docs/benchmarks, and its main figures into the README."""
    PUBLISHED.mkdir(parents=True, exist_ok=True)
    (PUBLISHED / "summary.json").write_text(as_text(summary), encoding="utf-8")
    (PUBLISHED / "table.md").write_text(table(summary), encoding="utf-8")
    text = README.read_text(encoding="utf-8")
    README.write_text(with_part(text, readme_part(summary)), encoding="utf-8")
    draw_all(summary, PUBLISHED, [CHART])


if __name__ == "__main__":
    publish(summary_of(json.loads(pathlib.Path(sys.argv[1]).read_text(encoding="utf-8"))))
