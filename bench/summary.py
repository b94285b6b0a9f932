"""From the raw rounds of a run to its summary: what is shown, and published, of it."""

import json
import statistics

from contestants import CONTESTANTS
from goals import GOALS
from suite import find

# The cases whose peak memory is shown: those on which contestants differ most.
MEMORY = (
    "shuffled/n=10000",
    "stochastic/n=100000",
    "argument/kind=array",
    "batches/size=602112",
)


def short(value, digits=4):
    """Four digits: more than are shown, or repeat from one run to the next."""
    return float(f"{value:.{digits}g}")


def spread(seconds):
    """The quartiles; of the first and the third, fewer digits are shown."""
    first, median, third = quartiles(seconds)
    return [short(first, 3), short(median), short(third, 3)]


def seconds_per_unit(result):
    return [seconds / count for count, seconds in result["rounds"]]


def cpu_per_unit(result):
    """The median of the processor time for a unit, of all processes; None where it is not known."""
    pairs = zip(result.get("cpu", ()), result["rounds"], strict=False)
    return short(statistics.median(values)) if (values := [x / n for x, (n, _) in pairs]) else None


def quartiles(values):
    """The first quartile, the median and the third."""
    if len(values) == 1:
        return values * 3
    return statistics.quantiles(values, n=4, method="inclusive")


def ratio(results, slow, fast):
    """The median of the ratios in each round, of two that are given as (case, contestant).

    What was measured in one round had the same minute; medians may come from different ones.
    """
    both = [results.get(case, {}).get(contestant) for case, contestant in (slow, fast)]
    if None in both:
        return None
    pairs = zip(*map(seconds_per_unit, both), strict=False)
    return short(statistics.median(x / y for x, y in pairs))


def compared(goal):
    return f"{' '.join(goal.slow)} / {' '.join(goal.fast)}"


def summary_of(data):
    """Return the summary of a run; of a summary, itself.

    cases: by identifier, its section, unit, parameters and bytes, and by contestant the seconds per
    unit (first quartile, median, third), the ratio to ours, the size of what it makes, and the
    processor time per unit of jobs of several processes. goals: the ratio that each has reached.
    """
    if "cases" in data:
        return data
    results, cases, skipped = data["results"], {}, {}
    for identifier, found in results.items():
        case, params = find(identifier)
        cases[identifier] = {
            "params": params,
            "section": case.section,
            "unit": case.unit,
            # Not where samples have no size, in most cases: 50 KB are soon full.
            **({"bytes": case.n_bytes(**params)} if case.n_bytes else {}),
            "by": {},
        }
        for name, result in found.items():
            entry = cases[identifier]["by"][name] = {
                "seconds": spread(seconds_per_unit(result)),
                "ratio": ratio(results, (identifier, name), (identifier, "ours")),
            }
            extra = {"size": result["size"], "way": case.ways.get(name)}
            extra["cpu"] = cpu_per_unit(result)
            entry |= {key: value for key, value in extra.items() if value}
    for identifier, name, reason in data["skipped"]:
        skipped.setdefault(name, {}).setdefault(reason, []).append(identifier)
    for reasons in skipped.values():
        for reason, identifiers in reasons.items():
            reasons[reason] = cases_among(identifiers, results)
    return {
        **{key: data[key] for key in ("date", "make", "commit", "machine")},
        "who": {
            name: {"note": CONTESTANTS[name].note, "versions": data["versions"][name]}
            for name in CONTESTANTS
            if name in data["versions"]
        },
        "cases": cases,
        "goals": {
            compared(goal): reached
            for goal in GOALS
            if (reached := ratio(results, goal.slow, goal.fast)) is not None
        },
        "memory": {
            case: {name: it["memory"] for name, it in results[case].items() if name != "limit"}
            for case in MEMORY
            if case in results
        },
        "skipped": skipped,
    }


def cases_among(identifiers, results):
    """Identifiers; for all those of a case that took part, only its name."""
    of_case = {}
    for identifier in [*identifiers, *results]:
        of_case.setdefault(identifier.partition("/")[0], set()).add(identifier)
    return list(
        dict.fromkeys(
            name if of_case[name] <= set(identifiers) else identifier
            for identifier in identifiers
            for name in [identifier.partition("/")[0]]
        )
    )


def as_text(summary):
    """A summary as JSON with a line for each case: a change of one shows as one."""

    def text(value, depth):
        if depth == 2 or not isinstance(value, dict) or not value:
            return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
        lines = [
            f"{' ' * depth}{json.dumps(key)}: {text(it, depth + 1)}" for key, it in value.items()
        ]
        return "{\n" + ",\n".join(lines) + "\n}"

    return text(summary, 0) + "\n"
