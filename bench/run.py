"""Measure pescador, its peer and others on the same work, in one run.

    python bench/run.py                              the short profile: under ten minutes
    python bench/run.py --profile full               under an hour
    python bench/run.py --only 'shuffled*' --against peer,hand --rounds 9
    python bench/run.py --list                       what there is

Writes bench/results/latest.json, bench/results/table.md and bench/figures. See bench/README.md.
"""

import argparse
import collections
import contextlib
import datetime
import fnmatch
import importlib.util
import json
import os
import pathlib
import platform
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from typing import Any

import contestants
from contestants import ALWAYS, BENCH, CONTESTANTS, ENV, FILES
from jobs import Skip

RESULTS = BENCH / "results"
FIGURES = BENCH / "figures"


# The short profile has others on these cases only.
OTHERS_ON = {
    "shuffled/n=10",
    "shuffled/n=1000",
    "shuffled/n=1000/weighted=True",
    "round_robin/n=1000",
    "transport/size=64",
    "transport/size=40000000",
}


@dataclass
class Profile:
    """How much is measured, and for how long; times in seconds."""

    rounds: int
    round: float
    warm: float
    patience: float
    # Rounds of a contestant that is slow end after this, but for the least number.
    enough: float
    memory: bool
    # The peer and others with no more streams than this: their cost per sample grows with them.
    peer_streams: int
    other_streams: int
    # The cases that others are on; None for all.
    others_on: set[str] | None


PROFILES = {
    "short": Profile(9, 0.02, 0.7, 12, 1.0, False, 20_000, 10_000, OTHERS_ON),
    "full": Profile(15, 0.05, 1.5, 30, 15.0, True, 200_000, 10_000, None),
}

# Peak memory in the short profile: what differs most between contestants.
MEMORY = [
    "shuffled/n=10000",
    "stochastic/n=100000",
    "argument/kind=array",
    "batches/size=602112",
]

FAST = {"limit", "ours", "ours-function", "hand", "hand-blocks", "more-itertools"}

# Whose peak memory is measured on every case.
MEASURED = {"ours", "peer", "hand"}

# How many rounds are taken even of a contestant that is slow.
LEAST_ROUNDS = 2

# What numeric libraries would otherwise do with more than one processor.
THREADS = ("OMP", "OPENBLAS", "MKL", "NUMEXPR", "VECLIB_MAXIMUM")


class Failed(Exception):
    """A worker is gone or late; the message says which."""


class Process:
    """A worker process in a contestant's environment."""

    def __init__(self, contestant, patience):
        self.contestant = contestant
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115
        env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        env |= {f"{name}_NUM_THREADS": "1" for name in THREADS}
        env |= {"PYTHONHASHSEED": "0", "HF_HUB_OFFLINE": "1"}
        self.process = subprocess.Popen(
            [contestants.python_of(CONTESTANTS[contestant].env), BENCH / "worker.py", contestant],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            env=env,
            bufsize=0,
            start_new_session=True,
        )
        self.buffer = b""
        self.info = self.ask(patience, do="hello")

    def ask(self, patience, **order):
        """Give an order and return the answer; raise `Failed` if there is none in time."""
        try:
            self.process.stdin.write(json.dumps(order).encode() + b"\n")
        except OSError:
            raise Failed(self._last_words()) from None
        deadline = time.monotonic() + patience
        while b"\n" not in self.buffer:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self.process.stdout], [], [], left)[0]:
                self.kill()
                raise Failed(f"took more than {patience:.0f} s to {order['do']}")
            part = os.read(self.process.stdout.fileno(), 65536)
            if not part:
                raise Failed(self._last_words())
            self.buffer += part
        line, _, self.buffer = self.buffer.partition(b"\n")
        return json.loads(line)

    def _last_words(self):
        self.kill()
        self.errors.seek(0)
        lines = self.errors.read().decode(errors="replace").strip().splitlines()
        code = self.process.returncode
        return f"the worker ended with status {code}: {lines[-1] if lines else 'no output'}"[:300]

    def kill(self):
        # The whole session: a worker may have processes of its own.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def close(self):
        self.process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(5)
        self.kill()


class Progress:
    """One line on a terminal, a line for each case elsewhere."""

    def __init__(self, total):
        self.total, self.done = max(total, 1), 0
        self.start = time.monotonic()
        self.terminal = sys.stderr.isatty()
        self.shown = None

    def show(self, case, what=""):
        share = min(self.done / self.total, 1)
        spent = time.monotonic() - self.start
        left = "" if self.done < 3 else _minutes(spent / share - spent) + " left"
        if self.terminal:
            bar = "#" * round(20 * share)
            line = f"[{bar:.<20}] {share:4.0%} {left:>14}  {case} {what}"
            width = shutil.get_terminal_size().columns - 1
            sys.stderr.write(f"\r\x1b[K{line[:width]}")
        elif case != self.shown:
            sys.stderr.write(f"{share:4.0%} {left:>14}  {case}\n")
        self.shown = case
        sys.stderr.flush()

    def say(self, text):
        sys.stderr.write(f"\r\x1b[K{text}\n" if self.terminal else f"      {text}\n")

    def end(self):
        if self.terminal:
            sys.stderr.write("\r\x1b[K")
        sys.stderr.write(f"measured in {_minutes(time.monotonic() - self.start)}\n")


def _minutes(seconds):
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.1f} min"


@dataclass
class Work:
    """A case with its parameters, and the contestants that it is measured for."""

    case: Any
    params: dict[str, Any]
    names: list[str]

    @property
    def identifier(self):
        return self.case.identifier(self.params)


def side_by_side(plan):
    """Return the plan as groups of work that is measured in the same rounds.

    Cases are groups of their own, but for those that a goal compares with each other: measured
    minutes apart, they would compare the machine with itself.
    """
    from cases import GOALS

    compared = [{goal.slow[0], goal.fast[0]} for goal in GOALS]
    groups = []
    for work in plan:
        for group in groups:
            if any({work.identifier, it.identifier} in compared for it in group):
                group.append(work)
                break
        else:
            groups.append([work])
    return groups


class Run:
    """One run of the suite: what is asked for, the workers, and what has come out."""

    def __init__(self, names, selected, profile, rounds, limited):
        self.profile, self.rounds, self.limited = profile, rounds, limited
        # By contestant and place in a group.
        self.workers = {}
        self.results, self.memory, self.skipped = [], [], []
        self.versions = {}
        # Contestants that cannot run at all, with the reason.
        self.absent = {}
        self.plan = side_by_side(
            Work(it, params, [name for name in names if self._may(name, it, params)])
            for it, params in selected
        )
        self.progress = None

    def _may(self, name, it, params):
        """Tell whether this is work that the contestant does; note why not where it matters."""
        import_name = "pescador" if name in (contestants.OURS, contestants.PEER) else name
        if import_name not in it.builders:
            return False
        if self.limited and name not in FAST:
            identifier, profile = it.identifier(params), self.profile
            if name == contestants.PEER:
                most, cases = profile.peer_streams, None
            else:
                most, cases = profile.other_streams, profile.others_on
            if params.get("n", 0) > most:
                self.skip(identifier, name, f"more than {most:,} streams take too long")
                return False
            if cases is not None and identifier not in cases:
                self.skip(identifier, name, "left to the full profile")
                return False
        return True

    def _weighs(self, name, work):
        """Tell whether the peak memory of this is measured."""
        if name == "limit":
            return False
        return work.identifier in MEMORY or (self.profile.memory and name in MEASURED)

    def skip(self, identifier, contestant, reason):
        self.skipped.append({"case": identifier, "contestant": contestant, "reason": reason})

    def worker(self, seat):
        name, _ = seat
        if seat not in self.workers:
            process = Process(name, patience=120)
            if "error" in process.info:
                process.close()
                raise Failed(process.info["error"])
            self.versions[name] = process.info["versions"] | {"python": process.info["python"]}
            self.workers[seat] = process
        return self.workers[seat]

    def ask(self, identifier, seat, **order):
        """Ask a worker; note what goes wrong, and return None then."""
        name, _ = seat
        if name in self.absent:
            return None
        try:
            worker = self.worker(seat)
        except Failed as failure:
            self.absent[name] = str(failure)
            self.skip("all", name, str(failure))
            self.progress.say(f"{name} does not take part: {failure}")
            return None
        try:
            answer = worker.ask(self.profile.patience, **order)
        except Failed as failure:
            del self.workers[seat]
            answer = {"error": str(failure)}
        reason = answer.get("error") or answer.get("skip")
        if reason:
            self.skip(identifier, name, reason)
            if "error" in answer:
                self.progress.say(f"{identifier}: {name}: {reason}")
            return None
        return answer

    def prepare(self, work, seat, target):
        """Have a contestant ready for rounds; return how much is a round, or None if it cannot."""
        identifier, it, params = work.identifier, work.case, work.params
        if self.ask(identifier, seat, do="build", case=it.name, params=params) is None:
            return None
        warm = {"count": it.warm(**params), "seconds": self.profile.warm}
        last = self.ask(identifier, seat, do="warm", **warm)
        if last is None:
            return None
        answer = self.ask(identifier, seat, do="calibrate", target=target, **last)
        return None if answer is None else answer["count"]

    def measure(self, group):
        """Run the cases of a group under all contestants, round by round."""
        target, n_rounds = self.profile.round, self.rounds or self.profile.rounds
        if group[0].case.parallel:
            # Processes are started for each round: fewer and longer ones.
            target *= 6
            n_rounds = self.rounds or -(-self.profile.rounds // 2)
        title = " and ".join(work.identifier for work in group)
        for work in group:
            self.progress.show(title, "· files")
            write_files(work.case, work.params)
        counts = {}
        for place, work in enumerate(group):
            for name in work.names:
                self.progress.show(title, f"· {name}: start and warm up")
                count = self.prepare(work, (name, place), target)
                if count is not None:
                    counts[name, place] = count
                self.progress.done += 0.5
        rounds = collections.defaultdict(list)
        spent = collections.Counter()
        # Round 0 warms up and is not counted; processes that are started anew have no use for it.
        for i in range(1 if group[0].case.parallel else 0, n_rounds + 1):
            for seat in list(counts):
                if i > LEAST_ROUNDS and spent[seat] > self.profile.enough:
                    continue
                name, place = seat
                identifier = group[place].identifier
                self.progress.show(title, f"· {name}: round {i} of {n_rounds}")
                spent[seat] -= time.monotonic()
                answer = self.ask(identifier, seat, do="round", count=counts[seat])
                spent[seat] += time.monotonic()
                if answer is None:
                    del counts[seat]
                elif i:
                    rounds[seat].append([answer["count"], answer["seconds"]])
                if i and seat in counts:
                    self.progress.done += 0.5 / n_rounds
        for seat in counts:
            self.ask(group[seat[1]].identifier, seat, do="drop")
        self._retire(group)
        for place, work in enumerate(group):
            it, params = work.case, work.params
            size = it.n_bytes(**params) if it.n_bytes else None
            self.results += [
                {
                    "case": work.identifier,
                    "name": it.name,
                    "params": params,
                    "section": it.section,
                    "unit": it.unit,
                    "bytes": size,
                    "contestant": name,
                    "way": it.ways.get(name, ""),
                    "rounds": rounds[name, place],
                }
                for name in work.names
                if (name, place) in counts
            ]

    def _retire(self, group):
        """Close the workers that other groups should not use."""
        for place, work in enumerate(group):
            # After many streams, the memory that a process has left to give is in shreds.
            if place or work.params.get("n", 0) >= 100_000:
                for seat in self.workers.keys() & {(name, place) for name in work.names}:
                    self.workers.pop(seat).close()

    def measure_memory(self, work, names):
        """Run one case in a process that has done nothing else, for each contestant."""
        for name in names:
            self.progress.show(work.identifier, f"· {name}: memory")
            self.progress.done += 0.5
            # None of the workers so far has this place.
            seat = (name, "memory")
            order = {"do": "memory", "case": work.case.name, "params": work.params, "seconds": 1.0}
            answer = self.ask(f"memory of {work.identifier}", seat, **order)
            if answer is not None:
                self.memory.append({"case": work.identifier, "contestant": name, **answer})
            worker = self.workers.pop(seat, None)
            if worker is not None:
                worker.close()

    def go(self):
        for_memory = [
            (work, [name for name in work.names if self._weighs(name, work)])
            for group in self.plan
            for work in group
        ]
        total = sum(len(work.names) for work, _ in for_memory)
        total += sum(len(names) for _, names in for_memory) / 2
        self.progress = Progress(total)
        try:
            for group in self.plan:
                self.measure(group)
            for work, names in for_memory:
                self.measure_memory(work, names)
        finally:
            for worker in self.workers.values():
                worker.close()
            self.progress.end()


@contextlib.contextmanager
def folder_of_files():
    """A folder for the files of all cases, of which workers are told."""
    with tempfile.TemporaryDirectory(prefix="pescador-bench-") as folder:
        os.environ[FILES] = folder
        yield


def write_files(it, params):
    """Write the files of a case, so that no contestant has to while it is timed."""
    if it.files is not None:
        # What takes packages that are not here is left to the environment of ours.
        with contextlib.suppress(Skip):
            it.files(**params)


def machine():
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as info:
        for line in info:
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    return {
        "cpu": model,
        "processors": os.cpu_count(),
        "memory_gb": _memory_gb(),
        "system": platform.system(),
    }


def _memory_gb():
    with contextlib.suppress(ValueError, OSError, AttributeError):
        return round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30)
    return None


def commit():
    """The commit that is measured, marked if there are changes; None outside of git."""
    git = ["git", "-C", str(contestants.ROOT)]
    try:
        head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True)
        dirty = subprocess.run([*git, "status", "--porcelain", "pescador"], capture_output=True)
    except OSError:
        return None
    if head.returncode:
        return None
    return head.stdout.decode().strip() + ("+changes" if dirty.stdout.strip() else "")


def make_command(profile):
    """How to run the same again."""
    full = ["--profile", "full"]
    rest = " ".join(sys.argv[1:])
    for form in (" ".join(full), "=".join(full)):
        rest = rest.replace(form, "").strip()
    target = "make bench-full" if profile == "full" else "make bench"
    return f'{target} BENCH="{rest}"' if rest else target


def parse_arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only",
        action="append",
        metavar="CASE",
        help="a case, a case with parameters, or a pattern with * (may be repeated)",
    )
    parser.add_argument(
        "--against",
        metavar="NAMES",
        help="contestants besides ours and the limit, with commas; default: those that are light "
        "or installed (short profile), or all (full)",
    )
    parser.add_argument("--profile", choices=PROFILES, default="short", help="(%(default)s)")
    parser.add_argument("--rounds", type=int, help="rounds that count, for each contestant")
    parser.add_argument("--no-memory", action="store_true", help="do not measure peak memory")
    parser.add_argument("--no-charts", action="store_true", help="write the table only")
    parser.add_argument(
        "--results", type=pathlib.Path, default=RESULTS, help="folder for what comes out"
    )
    parser.add_argument("--list", action="store_true", help="show cases and contestants")
    args = parser.parse_args()
    if args.rounds is not None and args.rounds < 1:
        parser.error("--rounds must be 1 or more")
    return args


def select_cases(patterns, profile):
    """The cases and parameters that match any of the patterns, in the order of definition."""
    from cases import CASES

    chosen = []
    for it in CASES.values():
        # Who asks for a case by name may mean one that only the full profile runs.
        for params in it.grid("full" if patterns else profile):
            identifier = it.identifier(params)
            listed = patterns is None or any(
                fnmatch.fnmatchcase(identifier, pattern)
                # A name alone means the parameters of the profile.
                or (pattern == it.name and params in it.grid(profile))
                for pattern in patterns
            )
            if listed:
                chosen.append((it, params))
    return chosen


def select_contestants(against, profile):
    """Return the names that run, and those that do not with the reason."""
    if against is not None:
        wanted = [name.strip() for name in against.split(",") if name.strip()]
        unknown = [name for name in wanted if name not in CONTESTANTS]
        if unknown:
            sys.exit(f"no contestant {', '.join(unknown)}; there are {', '.join(CONTESTANTS)}")
        return [name for name in CONTESTANTS if name in wanted or name in ALWAYS], {}
    names, left = [], {}
    for name, it in CONTESTANTS.items():
        if profile == "full" or ENV[it.env].light or contestants.is_made(it.env):
            names.append(name)
        else:
            left[name] = (
                "a large download, so not installed by the short profile: "
                f"python bench/contestants.py {it.env}"
            )
    return names, left


def show_list(args):
    from cases import CASES

    for it in CASES.values():
        print(f"{it.name}: {it.doc}")
        for profile, grid in (("short", it.short), ("full", it.full)):
            print(f"    {profile}: {', '.join(it.identifier(params) for params in grid) or '-'}")
        print("    done by: ours, peer")
        for name in it.builders:
            if name != "pescador":
                print(f"        {name}{': ' if it.ways[name] else ''}{it.ways[name]}")
    print("contestants:")
    for name, it in CONTESTANTS.items():
        made = "made" if contestants.is_made(it.env) else "not made"
        print(f"    {name}: {it.note or ', '.join(it.imports)} (environment {it.env}, {made})")


def needed(names, selected):
    """The environments of those contestants that have anything to do, and the charts'."""
    used = []
    for name in names:
        builder = "pescador" if name in (contestants.OURS, contestants.PEER) else name
        if any(builder in it.builders for it, _ in selected):
            used.append(CONTESTANTS[name].env)
    return list(dict.fromkeys(used))


def have_numpy():
    """Go on in the environment of the charts if this one has no NumPy, which cases import."""
    if importlib.util.find_spec("numpy") is None:
        failed = contestants.make_all(["report"])
        if failed:
            sys.exit(f"without NumPy here, the environment of the charts {failed['report']}")
        python = str(contestants.python_of("report"))
        os.execv(python, [python, *sys.argv])


def main():
    args = parse_arguments()
    have_numpy()
    if args.list:
        return show_list(args)
    profile = PROFILES[args.profile]
    if args.no_memory:
        profile.memory = False
        MEMORY.clear()
    selected = select_cases(args.only, args.profile)
    if not selected:
        sys.exit(f"--only {' '.join(args.only)} matches no case; see --list")
    names, left = select_contestants(args.against, args.profile)
    envs = needed(names, selected)
    failed = contestants.make_all(
        envs if args.no_charts else [*envs, "report"], say=lambda text: print(text, file=sys.stderr)
    )
    for name in list(names):
        reason = failed.get(CONTESTANTS[name].env)
        if reason:
            names.remove(name)
            left[name] = reason
    if contestants.OURS not in names:
        sys.exit(f"ours {left[contestants.OURS]}; see {contestants.ENVS / 'ours.log'}")
    # Who asks for a case gets all that there is of it.
    run = Run(names, selected, profile, args.rounds, limited=not args.only)
    for name, reason in left.items():
        run.skip("all", name, reason)
    status = 0
    with folder_of_files():
        try:
            run.go()
        except KeyboardInterrupt:
            print("interrupted: what was measured is written", file=sys.stderr)
            status = 130
    data = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "make": make_command(args.profile),
        "profile": args.profile,
        "commit": commit(),
        "machine": machine(),
        "versions": run.versions,
        "results": run.results,
        "memory": run.memory,
        "skipped": run.skipped,
    }
    args.results.mkdir(parents=True, exist_ok=True)
    path = args.results / "latest.json"
    path.write_text(json.dumps(data, indent=1) + "\n")
    dated = args.results / f"{data['date'][:19].replace(':', '')}.json"
    shutil.copy(path, dated)
    charts = "report" not in failed and not args.no_charts
    python = contestants.python_of("report") if charts else sys.executable
    report = [python, BENCH / "report.py", path, *([] if charts else ["--no-charts"])]
    done = subprocess.run([*report, "--figures", _figures(args.results)])
    return status or done.returncode


def _figures(results):
    return FIGURES if results == RESULTS else results / "figures"


if __name__ == "__main__":
    sys.exit(main())
