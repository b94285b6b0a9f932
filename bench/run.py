"""Measure pescador, its peer and others on the same work, in one run.

    make bench                                       the short profile: under ten minutes
    make bench-full                                  under an hour
    make bench BENCH="--only 'shuffled*' --against peer,hand --rounds 9"
    make bench BENCH=--list                          what there is

Writes bench/results: latest.json, table.md and charts. See bench/README.md.
"""

import contextlib
import json
import shutil
import sys

import about
import contestants
import data
import plan
import report
from contestants import BENCH, CONTESTANTS, OURS
from process import Process
from suite import CASES
from tqdm import tqdm

RESULTS = BENCH / "results"


def say(text):
    """A line on standard error, above the bar if there is one."""
    tqdm.write(text, file=sys.stderr)


def measure(group, profile, rounds):
    """Run the cases of a group in rounds that alternate between contestants; return processes."""
    target, first = profile.round, 0
    if group[0].case.parallel:
        # Processes are started for each round: fewer and longer ones, and none to warm up.
        target, rounds, first = target * 6, rounds or -(-profile.rounds // 2), 1
    for work in group:
        data.write_files(work.case, work.params)
    with contextlib.ExitStack() as stack:
        processes = [Process(name, work, profile, target) for work in group for name in work.names]
        for process in processes:
            stack.callback(process.close)
        for process in processes:
            process.start()
        for process in processes:
            process.prepare()
        for i in range(first, (rounds or profile.rounds) + 1):
            for process in processes:
                process.round(counts=i > 0)
    return processes


def measure_all(groups, profile, rounds, found):
    """Measure group after group; note in `found` the rounds, the versions, and what is skipped."""
    for group in tqdm(groups, disable=None):
        say(" and ".join(work.identifier for work in group))
        for it in measure(group, profile, rounds):
            identifier, name = it.work.identifier, it.contestant
            if it.versions:
                found["versions"][name] = it.versions
            if it.failure:
                say(f"    {name}: {it.failure}")
                found["skipped"].append([identifier, name, it.failure])
            else:
                result = {"rounds": it.rounds, "size": it.size, "memory": it.memory}
                result |= {"cpu": it.cpu} if it.cpu else {}
                found["results"].setdefault(identifier, {})[name] = result


def write(found):
    """Write what was found, and show it."""
    run = about.run() | found
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / "latest.json"
    path.write_text(json.dumps(run, indent=1) + "\n", encoding="utf-8")
    shutil.copy(path, RESULTS / f"{run['date'][:19].replace(':', '')}.json")
    report.show(path)


def show_list():
    for it in CASES.values():
        print(f"{it.name}: {it.doc}")
        for profile, grid in (("short", it.short), ("full", it.full)):
            print(f"    {profile}: {', '.join(map(it.identifier, grid)) or '-'}")
        for name in filter(it.builder, CONTESTANTS):
            print(f"        {name}: {it.ways.get(name, '')}".rstrip(": "))
    print("contestants:")
    for name, it in CONTESTANTS.items():
        made = "made" if contestants.is_made(it.env) else "not made"
        print(f"    {name}: {it.note or ', '.join(it.imports)} (environment {it.env}, {made})")


def main():
    parser = plan.parser(__doc__, CONTESTANTS)
    parser.add_argument("--profile", choices=plan.PROFILES, default="short", help="(%(default)s)")
    parser.add_argument("--rounds", type=int, help="rounds that count, for each contestant")
    parser.add_argument("--list", action="store_true", help="show cases and contestants")
    args = parser.parse_args()
    if args.list:
        return show_list()
    selected = plan.select_cases(args.only, args.profile)
    names, left = plan.select_contestants(args.against, args.profile)
    names = [name for name in names if any(it.builder(name) for it, _ in selected)]
    failed = contestants.make_all(dict.fromkeys(CONTESTANTS[name].env for name in names), say)
    left |= {name: failed[env] for name in names if (env := CONTESTANTS[name].env) in failed}
    if OURS in left:
        sys.exit(f"ours {left[OURS]}; see {contestants.ENVS / 'ours.log'}")
    names = [name for name in names if name not in left]
    profile = plan.PROFILES[args.profile]
    # Who asks for a case gets all that there is of it.
    groups = plan.groups(selected, names, None if args.only else profile)
    skipped = [["all", name, reason] for name, reason in left.items()]
    found = {"results": {}, "versions": {}, "skipped": skipped}
    try:
        with data.folder_of_files():
            measure_all(groups, profile, args.rounds, found)
    finally:
        # Interrupted, too: what was measured is written.
        write(found)


if __name__ == "__main__":
    main()
