"""Say what is in files, and how fast batches come from them: ``python -m pescador``."""

import argparse
import contextlib
import json
import math
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from typing import Any, TypeAlias

import numpy as np

from ._repr import count
from .batches import batches
from .exceptions import PescadorError
from .sources.pool import files
from .sources.stores import open_store

_NAMED = 10  # files that are named where some differ; more are counted

# What a file holds: by key, the dtype and the shape.
_Layout: TypeAlias = dict[str, tuple[str, tuple[int, ...]]]


# ------------------------------------------------------------------------------------- describe


def describe(data: list[str], keys: list[str] | None = None) -> dict[str, Any]:
    """Return what is in files, below these keys or all: dtypes, shapes, rows; which files differ.

    Returns
    -------
    found : dict
        ``files`` and ``bytes``: their number, and their size on disk. ``keys``: for each key that
        most files have, its ``key``, ``dtype``, ``bytes``, the ``shape`` of a row, where
        ``[least, most]`` stands for a length that differs between files, and ``rows``: the
        ``least`` and the ``most`` in a file, and ``all``. ``differ``, ``unfit`` and ``damaged``: by
        path, how a file differs from most, why its arrays have no rows in common, and why it
        cannot be read.
    """
    layouts: dict[str, _Layout] = {}
    damaged = {}
    size = 0
    for path in _with_progress(data, "reading"):
        try:
            size += _bytes_of(path)
            with open_store(path, keys) as store:
                layouts[path] = {
                    str(key): (str(array.dtype), tuple(map(int, array.shape)))
                    for key, array in store.arrays.items()
                }
        except (PescadorError, OSError) as error:
            damaged[path] = str(error)
    most = _most(list(layouts.values()))
    differ = {path: why for path, one in layouts.items() if (why := _difference(most, one))}
    alike = [one for path, one in layouts.items() if path not in differ]
    found = []
    for key, (dtype, lengths) in most.items():
        shapes = [one[key][1] for one in alike]
        rows, *columns = list(zip(*shapes, strict=True)) or [()]
        shape = [
            [min(column), max(column)] if length is None else length
            for length, column in zip(lengths[1:], columns, strict=True)
        ]
        found.append(
            {
                "key": key,
                "dtype": dtype,
                "shape": shape,
                "rows": {
                    "least": min(rows, default=None),
                    "most": max(rows, default=None),
                    "all": sum(rows),
                },
                "bytes": int(np.dtype(dtype).itemsize) * sum(map(math.prod, shapes)),
            }
        )
    return {
        "files": len(data),
        "bytes": size,
        "keys": found,
        "differ": differ,
        "unfit": {path: why for path, one in layouts.items() if (why := _unfit(one))},
        "damaged": damaged,
    }


def _unfit(layout: _Layout) -> str:
    """Return why the arrays of a file have no rows in common, or nothing."""
    lengths = {key: shape[0] for key, (_, shape) in layout.items() if shape}
    if len(set(lengths.values())) > 1:
        return "rows: " + ", ".join(f"{n:,} of {key}" for key, n in lengths.items())
    return "no rows" if 0 in lengths.values() else ""


def _bytes_of(path: str) -> int:
    if not os.path.isdir(path):
        return os.path.getsize(path)
    return sum(
        os.path.getsize(os.path.join(folder, name))
        for folder, _, names in os.walk(path)
        for name in names
    )


def _most(layouts: list[_Layout]) -> dict[str, tuple[str, tuple[int | None, ...]]]:
    """Return the layout of most files; None is a length that differs: of rows, and maybe others."""
    kinds = [
        tuple((key, dtype, len(shape)) for key, (dtype, shape) in one.items()) for one in layouts
    ]
    if not kinds:
        return {}
    kind = Counter(kinds).most_common(1)[0][0]
    members = [one for one, its in zip(layouts, kinds, strict=True) if its == kind]
    most = {}
    for key, dtype, n_dims in kind:
        lengths: list[int | None] = [None] * n_dims
        for axis in range(1, n_dims):
            [(length, count)] = Counter(one[key][1][axis] for one in members).most_common(1)
            if 2 * count > len(members):
                lengths[axis] = length
        most[key] = dtype, tuple(lengths)
    return most


def _difference(most: dict[str, Any], one: _Layout) -> str:
    """Return how a file differs from most, or nothing."""
    parts = [f"lacks {key}" for key in most if key not in one]
    parts += [f"also has {key}" for key in one if key not in most]
    for key, (dtype, shape) in one.items():
        if key in most:
            other, lengths = most[key]
            fits = len(shape) == len(lengths) and all(
                n is None or n == m for n, m in zip(lengths, shape, strict=True)
            )
            if dtype != other or not fits:
                parts.append(f"{key} is {dtype}{list(shape[1:])}")
    if not parts and list(one) != list(most):
        return "keys in another order"
    return ", ".join(parts)


def _print_description(found: dict[str, Any]) -> None:
    print(f"{count(found['files'], 'file')}, {_bytes(found['bytes'])}")
    table = [["key", "dtype", "shape of a row", "rows in a file", "rows", "bytes"]]
    for key in found["keys"]:
        least, most, total = key["rows"]["least"], key["rows"]["most"], key["rows"]["all"]
        each = "-" if least is None else f"{least:,}" if least == most else f"{least:,} to {most:,}"
        lengths = [f"({n[0]} to {n[1]})" if isinstance(n, list) else f"{n}" for n in key["shape"]]
        shape = " x ".join(lengths) or "-"
        table.append([key["key"], key["dtype"], shape, each, f"{total:,}", _bytes(key["bytes"])])
    if found["keys"]:
        _print_table(table)
    for what, paths in (
        ("that differ from most", found["differ"]),
        ("with keys of different lengths, or of none", found["unfit"]),
        ("with an error", found["damaged"]),
    ):
        if paths:
            print(f"\n{count(len(paths), 'file')} {what}:")
            for path, why in islice(paths.items(), _NAMED):
                print(f"  {why if why.startswith(path) else f'{path}: {why}'}")
            if len(paths) > _NAMED:
                print(f"  and {len(paths) - _NAMED:,} more")


# -------------------------------------------------------------------------------------- measure


def measure(data: Any, batch_size: int, seconds: float, **options: Any) -> dict[str, Any]:
    """Return how fast `pescador.batches` gives them, and with other rates and active sets.

    It takes about so many seconds in all.

    Returns
    -------
    found : dict
        ``samples_per_second``, ``bytes_per_second``, ``first_batch_seconds``. ``share_opening``:
        the part of the time that starting visits takes, from a comparison of two rates; None
        where `rate` is None. ``memory``: the bytes by which the process has grown, ``anonymous``
        and ``mapped``. ``others``: the speed with other values of `rate` and `n_active`.
    """
    n_files = len(data)
    rate = options["rate"]
    n_active = options.pop("n_active")
    n_active = min(32 if n_active is None else n_active, n_files)
    plans: list[tuple[float | None, int]] = [(rate, n_active)]
    if rate is not None:
        plans += [(rate * 4, n_active), (_whole(max(rate / 4, 1)), n_active)]
        plans += [(rate, k) for k in (max(n_active // 4, 1), min(n_active * 4, n_files))]
    plans = list(dict.fromkeys(plans))
    before = _memory()
    results = {}
    for plan in _with_progress(plans, "measuring"):
        # The plan that was asked for takes half of the time; the others share the rest.
        share = 0.5 if plan == plans[0] else 0.5 / max(len(plans) - 1, 1)
        chosen = {**options, "rate": plan[0], "n_active": plan[1]}
        stream = batches(data, batch_size, **chosen).iterate()
        results[plan] = _speed(stream, batch_size, share * seconds)
        if plan == plans[0]:
            after = _memory()
    found: dict[str, Any] = {
        "files": n_files,
        "batch_size": batch_size,
        "rate": rate,
        "n_active": n_active,
        **results[plans[0]],
        "share_opening": None,
        "memory": {name: max(after[name] - before[name], 0) for name in after},
        "others": [
            {"rate": r, "n_active": k, "samples_per_second": results[r, k]["samples_per_second"]}
            for r, k in plans[1:]
        ],
    }
    if rate is not None:
        # A sample takes a + b / rate seconds, where b is the time to start a visit.
        here, longer = (1 / results[p]["samples_per_second"] for p in plans[:2])
        visit = (here - longer) / (1 / rate - 1 / (4 * rate))
        found["share_opening"] = min(max(visit / rate / here, 0.0), 1.0)
    return found


def _speed(stream: Iterator[dict[Any, Any]], batch_size: int, seconds: float) -> dict[str, float]:
    """Draw batches for some seconds, of which the first fifth is not counted."""
    start = time.perf_counter()
    batch = next(stream, None)
    first = time.perf_counter() - start
    if batch is None:
        raise PescadorError(f"there are fewer samples than one batch, {batch_size}")
    size = sum(int(array.nbytes) for array in batch.values())
    # Batches drawn, those of them that are not counted, and when the count began.
    n, before, at = 1, 0, start
    # At least one is counted, however late the first one came.
    while (now := time.perf_counter()) < start + seconds or not before:
        if not before and now >= start + seconds / 5:
            before, at = n, now
        if next(stream, None) is None:
            break
        n += 1
    if n == before:
        # The stream ended too early: all count.
        before, at = 0, start
    samples = (n - before) * batch_size / max(time.perf_counter() - at, 1e-9)
    return {
        "samples_per_second": samples,
        "bytes_per_second": samples * size / batch_size,
        "first_batch_seconds": first,
    }


def _memory() -> dict[str, int]:
    """Return how much memory this process has, of its own and of mapped files."""
    kinds = {"RssAnon": "anonymous", "RssFile": "mapped"}
    found = dict.fromkeys(kinds.values(), 0)
    with contextlib.suppress(OSError), open("/proc/self/status") as lines:
        for line in lines:
            name, _, value = line.partition(":")
            if name in kinds:
                found[kinds[name]] = 1024 * int(value.split()[0])
    return found


def _print_measurement(found: dict[str, Any]) -> None:
    print(
        f"{count(found['files'], 'file')}, batches of {found['batch_size']:,}, "
        f"rate={found['rate']}, n_active={found['n_active']}"
    )
    table = [
        ["samples a second", f"{found['samples_per_second']:,.0f}"],
        ["bytes a second", _bytes(found["bytes_per_second"])],
        ["first batch after", f"{found['first_batch_seconds'] * 1000:.1f} ms"],
    ]
    if found["share_opening"] is not None:
        table.append(["time spent opening files", f"{found['share_opening']:.0%}"])
    table.append(["memory", _bytes(found["memory"]["anonymous"])])
    table.append(["maps of files in memory", _bytes(found["memory"]["mapped"])])
    _print_table(table)
    if not found["others"]:
        return
    print("\nwith other settings:")
    rows = [["rate", "n_active", "samples a second", ""]]
    for other in found["others"]:
        speed = other["samples_per_second"]
        ratio = f"{speed / found['samples_per_second']:.2f}x"
        rows.append([str(other["rate"]), str(other["n_active"]), f"{speed:,.0f}", ratio])
    _print_table(rows)


# --------------------------------------------------------------------------------------- common


def _with_progress(values: list[Any], what: str) -> Iterator[Any]:
    """Yield values, and show a progress bar if this is a terminal."""
    shown = sys.stderr.isatty()
    last = 0.0
    for i, value in enumerate(values):
        if shown and (time.monotonic() > last + 0.1 or len(values) < 100):
            last = time.monotonic()
            done = round(30 * i / len(values))
            bar = "#" * done + "." * (30 - done)
            print(f"\r{what} [{bar}] {i:,} of {len(values):,}", end="", file=sys.stderr, flush=True)
        yield value
    if shown:
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def _bytes(n: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if abs(n) < 1000:
            return f"{n:.3g} {unit}"
        n /= 1000
    return f"{n:,.3g} TB"


def _print_table(rows: list[list[str]]) -> None:
    """Print columns, the first to the left and the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for first, *others in rows:
        cells = [cell.rjust(n) for cell, n in zip(others, widths[1:], strict=True)]
        print("  ".join([first.ljust(widths[0]), *cells]).rstrip())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pescador", description="What is in files, and how fast batches come."
    )
    commands = parser.add_subparsers(required=True, metavar="command")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("data", nargs="+", help='a pattern, such as "features/*.npz", or paths')
    common.add_argument("--keys", nargs="+", help="which keys; all by default")
    common.add_argument("--json", action="store_true", help="for programs")

    one = commands.add_parser("describe", parents=[common], help="what is in files")
    one.set_defaults(run=describe, show=_print_description)

    two = commands.add_parser("measure", parents=[common], help="how fast batches come from them")
    two.add_argument("--batch-size", type=int, default=64)
    two.add_argument("--n-active", type=int, help="files open at a time (32)")
    two.add_argument("--rate", type=_rate, default=16, help="samples per visit, or none (16)")
    two.add_argument("--mode", default="single_active")
    two.add_argument("--length", type=int, help="of windows; rows by default")
    two.add_argument("--no-mmap", dest="mmap", action="store_false", help="read, do not map")
    two.add_argument("--seed", type=int, dest="random_state")
    two.add_argument("--seconds", type=_seconds, default=5)
    two.set_defaults(run=measure, show=_print_measurement)
    return parser


def _rate(text: str) -> float | None:
    if text.lower() == "none":
        return None
    return _whole(float(text))


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} must be a number of seconds above 0")
    return value


def _whole(value: float) -> float:
    """Return a number, as an int if it is whole: 4, and not 4.0."""
    return int(value) if float(value).is_integer() else value


def main(arguments: list[str] | None = None) -> int:
    """Run a command; return its exit code."""
    options = vars(_parser().parse_args(arguments))
    run, show, as_json = (options.pop(name) for name in ("run", "show", "json"))
    try:
        if len(options["data"]) == 1:
            options["data"] = files(options["data"][0])
        found = run(**options)
        print(json.dumps(found)) if as_json else show(found)
        return 1 if found.get("damaged") else 0
    except PescadorError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        return 1


if __name__ == "__main__":
    sys.exit(main())
