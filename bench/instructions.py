"""Count the machine instructions of one sample, under valgrind's callgrind.

Times differ from run to run and from machine to machine; counts repeat to a fraction of a
percent, so that a regression shows even on a busy machine. What is counted is a round alone, not
the start of Python; and each case runs twice, the second time with more samples, of which the
difference is taken: that leaves out what a round costs by itself.

    python bench/instructions.py [--only CASE] [--against peer,hand] [--profile-files]

Writes bench/results/instructions.json and instructions.md, and compares with the counts that were
there before.
"""

import argparse
import concurrent.futures
import fnmatch
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

import contestants
from contestants import BENCH, CONTESTANTS
from run import (
    RESULTS,
    THREADS,
    Progress,
    commit,
    folder_of_files,
    have_numpy,
    machine,
    write_files,
)

# Samples of the shorter run and of the longer one; those of slow contestants cost more each.
COUNTS = {"ours": (2_000, 52_000), "hand": (2_000, 52_000), "peer": (200, 1_200)}
BATCHES = (10, 210)


def count(contestant, identifier, samples, profile=None):
    """Run a case under callgrind; return the instructions of the whole process."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    env |= {f"{name}_NUM_THREADS": "1" for name in THREADS}
    # Hashes decide where dictionaries collide.
    env |= {"PYTHONHASHSEED": "0"}
    with tempfile.TemporaryDirectory() as folder:
        out = profile or pathlib.Path(folder, "callgrind")
        command = [
            "valgrind",
            "--tool=callgrind",
            f"--callgrind-out-file={out}",
            "--toggle-collect=ffi_call",
            contestants.python_of(CONTESTANTS[contestant].env),
            BENCH / "worker.py",
            contestant,
            identifier,
            str(samples),
        ]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=1800)
    found = re.search(r"Collected : (\d+)", done.stderr)
    if done.returncode or not found:
        lines = done.stderr.strip().splitlines() or ["no output"]
        raise RuntimeError(f"{contestant}, {identifier}: {lines[-1]}")
    return int(found[1])


def per_sample(contestant, identifier, profile=None):
    from cases import find

    batches = find(identifier)[0].unit == "batch"
    few, many = BATCHES if batches else COUNTS[contestant]
    # A round of `bound` is a stream from its start to its end.
    if identifier == "bound":
        few, many = 100_000, 200_000
    return (count(contestant, identifier, many, profile) - count(contestant, identifier, few)) / (
        many - few
    )


def parse_arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", action="append", metavar="CASE", help="as in run.py")
    parser.add_argument("--against", default="", metavar="NAMES", help="besides ours: peer, hand")
    parser.add_argument(
        "--profile-files",
        action="store_true",
        help="keep what callgrind writes, for callgrind_annotate or kcachegrind",
    )
    args = parser.parse_args()
    args.names = ["ours", *(name.strip() for name in args.against.split(",") if name.strip())]
    for name in args.names:
        if name not in COUNTS:
            parser.error(f"--against {name}: only peer and hand can be counted")
    return args


def main():
    args = parse_arguments()
    if shutil.which("valgrind") is None:
        sys.exit("valgrind is not installed; callgrind, which counts instructions, is part of it")
    have_numpy()
    from cases import CASES, CORE, find

    everything = [it.identifier(p) for it in CASES.values() for p in it.grid("full")]
    chosen = CORE
    if args.only:
        chosen = [c for c in everything if any(fnmatch.fnmatchcase(c, p) for p in args.only)]
        if not chosen:
            sys.exit(f"--only {' '.join(args.only)} matches no case; see run.py --list")
    failed = contestants.make_all(dict.fromkeys(CONTESTANTS[name].env for name in args.names))
    if failed:
        sys.exit("\n".join(f"{env} {reason}" for env, reason in failed.items()))
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / "instructions.json"
    before = json.loads(file.read_text())["counts"] if file.exists() else {}
    work = [(case, name) for case in chosen for name in args.names]
    progress = Progress(len(work))
    counts = {}

    def measure(item):
        case, name = item
        profile = None
        if args.profile_files:
            profile = RESULTS / f"callgrind.{name}.{case.replace('/', '.')}"
        try:
            return item, per_sample(name, case, profile)
        except (RuntimeError, subprocess.TimeoutExpired, KeyError) as error:
            return item, str(error)

    # Counts do not mind company.
    with folder_of_files(), concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for case in chosen:
            write_files(*find(case))
        for (case, name), found in pool.map(measure, work):
            progress.done += 1
            progress.show(case, f"· {name}")
            if isinstance(found, str):
                progress.say(f"skipped: {found}")
            else:
                counts.setdefault(case, {})[name] = round(found, 1)
    progress.end()

    lines = ["# Instructions per unit of work", ""]
    lines += [f"Under callgrind, commit {commit() or 'unknown'}, {machine()['cpu']}.", ""]
    lines += [f"| case | {' | '.join(args.names)} | ours, before | change |"]
    lines += ["|---" * (len(args.names) + 3) + "|"]
    for case in chosen:
        found, old = counts.get(case, {}), before.get(case, {}).get("ours")
        line = [f"{found[name]:,.0f}" if name in found else "" for name in args.names]
        change = f"{found['ours'] / old - 1:+.2%}" if old and "ours" in found else ""
        lines.append(
            f"| `{case}` | {' | '.join(line)} | {f'{old:,.0f}' if old else ''} | {change} |"
        )
    text = "\n".join([*lines, ""])
    print(text)
    (RESULTS / "instructions.md").write_text(text)
    # What was not counted this time stays, to compare with.
    merged = {case: before.get(case, {}) | counts.get(case, {}) for case in [*before, *counts]}
    file.write_text(json.dumps({"commit": commit(), "counts": merged}, indent=1) + "\n")


if __name__ == "__main__":
    main()
