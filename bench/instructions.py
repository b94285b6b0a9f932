"""Count the machine instructions of one sample, under valgrind's callgrind.

Times differ from run to run and from machine to machine; counts repeat to a fraction of a
percent, so that a regression shows even on a busy machine. What is counted is a round alone, not
the start of Python; and each case runs twice, the second time with more samples, of which the
difference is taken: that leaves out what a round costs by itself.

    make bench-instructions BENCH="[--only CASE] [--against peer,hand] [--profile-files]"

Writes bench/results/instructions.json and instructions.md, and compares with the counts that were
there before.
"""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor

import about
import contestants
import data
import plan
from contestants import CONTESTANTS
from goals import CORE
from process import command, environment
from report import rows
from run import RESULTS
from suite import find
from tqdm import tqdm

# Samples of the shorter run and of the longer one; those of slow contestants cost more each.
COUNTS = {"ours": (2_000, 52_000), "hand": (2_000, 52_000), "peer": (200, 1_200)}
BATCHES = (10, 210)
# A round of `bound` is a stream from its start to its end.
BOUND = (100_000, 200_000)


def count(contestant, identifier, samples, out):
    """Run a case under callgrind; return the instructions of the whole process."""
    done = subprocess.run(
        [
            "valgrind",
            "--tool=callgrind",
            f"--callgrind-out-file={out}",
            "--toggle-collect=ffi_call",
            *command(contestant, identifier, samples),
        ],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=1800,
    )
    found = re.search(r"Collected : (\d+)", done.stderr)
    if done.returncode or not found:
        lines = done.stderr.strip().splitlines() or ["no output"]
        raise RuntimeError(lines[-1])
    return int(found[1])


def per_sample(contestant, identifier, out):
    few, many = BATCHES if find(identifier)[0].unit == "batch" else COUNTS[contestant]
    if identifier == "bound":
        few, many = BOUND
    fewer = count(contestant, identifier, few, out)
    return round((count(contestant, identifier, many, out) - fewer) / (many - few), 1)


def count_all(work, folder):
    """Return {case: {contestant: instructions}}; counts do not mind company."""
    counts = {}

    def counted(item):
        case, name = item
        try:
            return per_sample(name, case, folder / f"callgrind.{name}.{case.replace('/', '.')}")
        except (RuntimeError, subprocess.TimeoutExpired) as error:
            tqdm.write(f"{case}: {name}: {error}", file=sys.stderr)
            return None

    with data.folder_of_files(), ThreadPoolExecutor(os.cpu_count()) as pool:
        for case, _ in work:
            data.write_files(*find(case))
        found = tqdm(pool.map(counted, work), total=len(work), disable=None)
        for (case, name), value in zip(work, found, strict=True):
            if value is not None:
                counts.setdefault(case, {})[name] = value
    return counts


def table(counts, before, names):
    yield ["case", *names, "ours, before", "change"]
    for case, found in counts.items():
        old, new = before.get(case, {}).get("ours"), found.get("ours")
        line = [f"{found[name]:,.0f}" if name in found else "" for name in names]
        change = [f"{old:,.0f}", f"{new / old - 1:+.2%}"] if old and new else ["", ""]
        yield [f"`{case}`", *line, *change]


def main():
    parser = plan.parser(__doc__, COUNTS)
    kept = "keep what callgrind writes, for callgrind_annotate or kcachegrind"
    parser.add_argument("--profile-files", action="store_true", help=kept)
    args = parser.parse_args()
    names = ["ours", *args.against]
    if shutil.which("valgrind") is None:
        sys.exit("valgrind is not installed; callgrind, which counts instructions, is part of it")
    chosen = CORE
    if args.only:
        chosen = [it.identifier(params) for it, params in plan.select_cases(args.only, "full")]
    failed = contestants.make_all({CONTESTANTS[name].env: None for name in names})
    if failed:
        sys.exit("\n".join(f"{env} {reason}" for env, reason in failed.items()))
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / "instructions.json"
    before = json.loads(file.read_text())["counts"] if file.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        kept = RESULTS if args.profile_files else pathlib.Path(folder)
        counts = count_all([(case, name) for case in chosen for name in names], kept)
    title = f"Under callgrind, commit {about.commit() or 'unknown'}, {about.machine()['cpu']}."
    lines = ["# Instructions per unit of work", "", title, "", *rows(table(counts, before, names))]
    print(*lines, sep="\n")
    (RESULTS / "instructions.md").write_text("\n".join([*lines, ""]))
    # What was not counted this time stays, to compare with.
    merged = {case: before.get(case, {}) | counts.get(case, {}) for case in [*before, *counts]}
    file.write_text(json.dumps({"commit": about.commit(), "counts": merged}, indent=1) + "\n")


if __name__ == "__main__":
    main()
