"""What is measured: which cases, by which contestants, for how long."""

import argparse
import fnmatch
import sys
from dataclasses import dataclass
from typing import Any

import contestants
from case import Case
from contestants import ALWAYS, CONTESTANTS, ENV, PEER
from goals import GOALS, PACES
from suite import CASES

# The short profile has others on these cases only.
OTHERS_ON = {
    "shuffled/n=10",
    "shuffled/n=1000",
    "shuffled/n=1000/weighted=True",
    "round_robin/n=1000",
    "transport/size=64",
    "transport/size=40000000",
    "parallel_npz/workers=2",
    "resume/step=save/samples=10000",
    "resume/step=restore/samples=10000",
}

# They take little longer than ours, and so do all cases.
FAST = {"limit", "ours", "ours-function", "hand", "hand-blocks", "more-itertools"}


@dataclass(frozen=True)
class Profile:
    """How much is measured, and for how long; times in seconds."""

    rounds: int
    round: float
    warm: float
    patience: float
    # Rounds of a contestant that is slow end after this, but for the least number.
    enough: float
    # The peer and others with no more streams than this: their cost per sample grows with them.
    peer_streams: int
    other_streams: int
    # The cases that others are on; None for all.
    others_on: frozenset[str] | None


PROFILES = {
    "short": Profile(9, 0.02, 0.7, 12, 1.0, 20_000, 10_000, frozenset(OTHERS_ON)),
    "full": Profile(15, 0.05, 1.5, 30, 15.0, 200_000, 10_000, None),
}


@dataclass
class Work:
    """A case with its parameters, and the contestants that do it."""

    case: Case
    params: dict[str, Any]
    names: list[str]

    @property
    def identifier(self):
        return self.case.identifier(self.params)


def parser(doc, names):
    """A parser of the arguments that choose cases, and contestants among `names`."""

    def against(text):
        chosen = text.split(",")
        if set(chosen) <= set(names):
            return chosen
        raise argparse.ArgumentTypeError(f"not all of {text} are among {', '.join(names)}")

    it = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    of_case = "a case, a case with parameters, or a pattern with * (may be repeated)"
    it.add_argument("--only", action="append", metavar="CASE", help=of_case)
    of_names = "contestants besides ours and the limit, with commas"
    it.add_argument("--against", type=against, default=[], metavar="NAMES", help=of_names)
    return it


def select_cases(patterns, profile):
    """The cases and parameters that match any of the patterns, in the order of definition."""

    def matches(it, params, pattern):
        # A name alone means the parameters of the profile.
        return fnmatch.fnmatchcase(it.identifier(params), pattern) or (
            pattern == it.name and params in it.grid(profile)
        )

    # Who asks for a case by name may mean one that only the full profile runs.
    selected = [
        (it, params)
        for it in CASES.values()
        for params in it.grid("full" if patterns else profile)
        if not patterns or any(matches(it, params, pattern) for pattern in patterns)
    ]
    return selected or sys.exit(f"--only {' '.join(patterns)} matches no case; see --list")


def select_contestants(against, profile):
    """Return the names that take part, and {name: why not} of the others."""
    if against:
        return [name for name in CONTESTANTS if name in ALWAYS or name in against], {}
    left = {
        name: f"a large download, not in the short profile: python bench/contestants.py {it.env}"
        for name, it in CONTESTANTS.items()
        if profile != "full" and not ENV[it.env].light and not contestants.is_made(it.env)
    }
    return [name for name in CONTESTANTS if name not in left], left


def does(name, it, params, profile):
    """Tell whether a contestant is measured on a case; all that can are, if the profile is None."""
    if it.builder(name) is None:
        return False
    if profile is None or name in FAST:
        return True
    n = params.get("n", 0)
    if name == PEER:
        return n <= profile.peer_streams
    on = profile.others_on
    return n <= profile.other_streams and (on is None or it.identifier(params) in on)


def groups(selected, names, profile):
    """Return lists of `Work` that is measured in the same rounds.

    Cases are groups of their own, but for those that a goal compares with each other: measured
    minutes apart, they would compare the machine with itself.
    """
    found = []
    compared = [{goal.slow[0], goal.fast[0]} for goal in GOALS]
    compared += [{pace.identifier, pace.over} for pace in PACES if pace.over]
    for it, params in selected:
        work = Work(it, params, [name for name in names if does(name, it, params, profile)])
        for group in found:
            if any({work.identifier, other.identifier} in compared for other in group):
                group.append(work)
                break
        else:
            found.append([work])
    return found
