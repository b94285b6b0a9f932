"""Say what is in files, and how fast batches come from them: ``python -m pescador``."""

import argparse
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

from .batches import batches
from .exceptions import PescadorError
from .sources.pool import files
from .sources.stores import open_store

# How many files are named where some differ.
_NAMED = 10

# By key, the dtype and the shape of a row.
_Layout: TypeAlias = dict[str, tuple[str, tuple[int, ...]]]


# ------------------------------------------------------------------------------------- describe


def describe(paths: list[str], keys: list[str] | None = None) -> dict[str, Any]:
    """Return what is in files: keys, dtypes, shapes, rows, bytes, and which files differ.

    Parameters
    ----------
    paths : list of str
        Of the files.
    keys : list of str or None
        Which keys to look at; None for all.

    Returns
    -------
    found : dict
        ``files``, ``bytes`` on disk, ``keys`` (of most files: name, dtype, shape of a row, in which
        a length that differs is a pair of the least and the most; rows at least, at most and in
        all, bytes), ``differ``, ``unfit`` (for rows) and ``damaged`` (path and reason).
    """
    layouts: dict[str, _Layout] = {}
    rows: dict[str, dict[str, int | None]] = {}
    damaged = {}
    size = 0
    for path in _with_progress(paths, "reading"):
        try:
            size += _bytes_of(path)
            with open_store(path, keys) as store:
                arrays = store.arrays.items()
                layouts[path] = {
                    str(key): (str(a.dtype), tuple(map(int, a.shape[1:]))) for key, a in arrays
                }
                rows[path] = {str(key): int(a.shape[0]) if a.shape else None for key, a in arrays}
        except (PescadorError, OSError) as error:
            damaged[path] = str(error)
    found: dict[str, Any] = {"files": len(paths), "bytes": size, "keys": []}
    most = _most(list(layouts.values()))
    alike = [path for path, one in layouts.items() if not _difference(most, one)]
    for key, (dtype, shape) in most.items():
        lengths = [rows[path][key] for path in alike]
        numbers = [n for n in lengths if n is not None]
        shapes = [layouts[path][key][1] for path in alike]
        items = [
            math.prod(one) * (1 if n is None else n) for one, n in zip(shapes, lengths, strict=True)
        ]
        found["keys"].append(
            {
                "key": key,
                "dtype": dtype,
                "shape": [
                    n if n is not None else [min(column), max(column)]
                    for n, column in zip(shape, zip(*shapes, strict=True), strict=True)
                ],
                "rows": {
                    "least": min(numbers, default=None),
                    "most": max(numbers, default=None),
                    "all": sum(numbers),
                },
                "bytes": int(np.dtype(dtype).itemsize) * sum(items),
            }
        )
    found["differ"] = {p: why for p, one in layouts.items() if (why := _difference(most, one))}
    found["unfit"] = {path: why for path, one in rows.items() if (why := _unfit(one))}
    found["damaged"] = damaged
    return found


def _unfit(n_rows: dict[str, int | None]) -> str:
    """Return why the arrays of a file have no rows in common, or nothing."""
    lengths = {key: n for key, n in n_rows.items() if n is not None}
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
    """Return the layout of most files; None stands for a length that most files have their own."""
    kinds = Counter(
        tuple((key, dtype, len(shape)) for key, (dtype, shape) in one.items()) for one in layouts
    )
    if not kinds:
        return {}
    kind, _ = kinds.most_common(1)[0]
    members = [
        one
        for one in layouts
        if kind == tuple((key, dtype, len(shape)) for key, (dtype, shape) in one.items())
    ]
    most = {}
    for key, dtype, n_dims in kind:
        shape = []
        for axis in range(n_dims):
            [(length, count)] = Counter(one[key][1][axis] for one in members).most_common(1)
            shape.append(length if 2 * count > len(members) else None)
        most[key] = dtype, tuple(shape)
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
                parts.append(f"{key} is {dtype}{list(shape)}")
    if not parts and list(one) != list(most):
        return "keys in another order"
    return ", ".join(parts)


def _print_description(found: dict[str, Any]) -> None:
    print(f"{_files(found['files'])}, {_bytes(found['bytes'])}")
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
        ("other keys", found["differ"]),
        ("keys of different lengths, or of none", found["unfit"]),
        ("an error", found["damaged"]),
    ):
        if paths:
            print(f"\n{_files(len(paths))} with {what}:")
            for path, why in islice(paths.items(), _NAMED):
                print(f"  {why if why.startswith(path) else f'{path}: {why}'}")
            if len(paths) > _NAMED:
                print(f"  and {len(paths) - _NAMED:,} more")


# -------------------------------------------------------------------------------------- measure


def measure(data: Any, batch_size: int, seconds: float, **options: Any) -> dict[str, Any]:
    """Return how fast batches come, and how fast with other rates and active sets.

    Parameters
    ----------
    data, batch_size, **options
        Of `pescador.batches`.
    seconds : float
        How long to measure in all, about.

    Returns
    -------
    found : dict
        ``samples_per_second``, ``bytes_per_second``, ``first_batch_seconds``,
        ``share_opening`` (of the time, by comparing two rates; None where `rate` is None),
        ``memory`` (bytes that the process has grown by: ``anonymous``, ``mapped``), and ``others``:
        the same speed with other values of `rate` and `n_active`, where there is a `rate`.
    """
    n_files = len(data)
    rate = options["rate"]
    n_active = min(options.pop("n_active") or 32, n_files)
    plans: list[tuple[float | None, int]] = [(rate, n_active)]
    if rate is not None:
        plans += [(rate * 4, n_active), (_whole(max(rate / 4, 1)), n_active)]
        plans += [(rate, k) for k in (max(n_active // 4, 1), min(n_active * 4, n_files))]
    plans = list(dict.fromkeys(plans))
    before = _memory()
    results = {}
    for plan in _with_progress(plans, "measuring"):
        # The first is the answer, and takes half of the time.
        share = 0.5 if plan == plans[0] else 0.5 / max(len(plans) - 1, 1)
        stream = batches(
            data, batch_size, n_active=plan[1], **{**options, "rate": plan[0]}
        ).iterate()
        results[plan] = _speed(stream, batch_size, share * seconds)
        if plan == plans[0]:
            after = _memory()
    first = results[plans[0]]
    found: dict[str, Any] = {
        "files": n_files,
        "batch_size": batch_size,
        "rate": rate,
        "n_active": n_active,
        "samples_per_second": first["samples_per_second"],
        "bytes_per_second": first["bytes_per_second"],
        "first_batch_seconds": first["first_batch_seconds"],
        "share_opening": None,
        "memory": {name: max(after[name] - before[name], 0) for name in after},
        "others": [
            {"rate": r, "n_active": k, "samples_per_second": results[r, k]["samples_per_second"]}
            for r, k in plans[1:]
        ],
    }
    if rate is not None:
        # A sample costs a + b / rate seconds, where b is a visit.
        here, slower = (1 / results[p]["samples_per_second"] for p in plans[:2])
        visit = (here - slower) / (1 / rate - 1 / (4 * rate))
        found["share_opening"] = min(max(visit / rate / here, 0.0), 1.0)
    return found


def _speed(stream: Iterator[dict[Any, Any]], batch_size: int, seconds: float) -> dict[str, float]:
    """Draw batches for some seconds, and not count the first fifth of them."""
    start = time.perf_counter()
    batch = next(stream, None)
    first = time.perf_counter() - start
    if batch is None:
        raise PescadorError(f"there are fewer samples than one batch, {batch_size}")
    size = sum(int(array.nbytes) for array in batch.values())
    n, began = 1, start + seconds / 5
    counted, at = 0, time.perf_counter()
    # However late the first batch came, one more is counted.
    while (now := time.perf_counter()) < start + seconds or not counted:
        if now < began:
            counted, at = 0, now
        if next(stream, None) is None:
            break
        n += 1
        counted += 1
    if now < began or not counted:
        counted, at = n, start
    samples = counted * batch_size / max(time.perf_counter() - at, 1e-9)
    return {
        "samples_per_second": samples,
        "bytes_per_second": samples * size / batch_size,
        "first_batch_seconds": first,
    }


def _memory() -> dict[str, int]:
    """Return how much memory this process has, of its own and of mapped files."""
    found = {"anonymous": 0, "mapped": 0}
    try:
        with open("/proc/self/status") as lines:
            for line in lines:
                name, _, value = line.partition(":")
                if name in ("RssAnon", "RssFile"):
                    kind = "anonymous" if name == "RssAnon" else "mapped"
                    found[kind] = 1024 * int(value.split()[0])
    except OSError:
        pass
    return found


def _print_measurement(found: dict[str, Any]) -> None:
    print(
        f"{_files(found['files'])}, batches of {found['batch_size']:,}, "
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
    """Yield values; show how far it is on a terminal."""
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


def _files(n: int) -> str:
    return f"{n:,} file{'' if n == 1 else 's'}"


def _bytes(n: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if abs(n) < 1000:
            return f"{n:.3g} {unit}"
        n /= 1000
    return f"{n:,.3g} TB"


def _print_table(rows: list[list[str]]) -> None:
    """Print columns, the first to the left and the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        first, *others = [
            cell.ljust(n) if i == 0 else cell.rjust(n)
            for i, (cell, n) in enumerate(zip(row, widths, strict=True))
        ]
        print("  ".join([first, *others]).rstrip())


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
    one.set_defaults(run=_describe)

    two = commands.add_parser("measure", parents=[common], help="how fast batches come from them")
    two.add_argument("--batch-size", type=int, default=64)
    two.add_argument("--n-active", type=int, help="files open at a time (32)")
    two.add_argument("--rate", type=_rate, default=16, help="samples per visit, or none (16)")
    two.add_argument("--mode", default="single_active")
    two.add_argument("--length", type=int, help="of windows; rows by default")
    two.add_argument("--no-mmap", dest="mmap", action="store_false", help="read, do not map")
    two.add_argument("--seed", type=int, dest="random_state")
    two.add_argument("--seconds", type=_seconds, default=5)
    two.set_defaults(run=_measure)
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


def _paths(data: list[str]) -> list[str]:
    return files(data[0]) if len(data) == 1 else data


def _describe(arguments: argparse.Namespace) -> int:
    found = describe(_paths(arguments.data), arguments.keys)
    print(json.dumps(found)) if arguments.json else _print_description(found)
    return 1 if found["damaged"] else 0


def _measure(arguments: argparse.Namespace) -> int:
    options = {**vars(arguments)}
    for name in ("run", "json"):
        options.pop(name)
    found = measure(_paths(options.pop("data")), **options)
    print(json.dumps(found)) if arguments.json else _print_measurement(found)
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Run a command; return its exit code."""
    parsed = _parser().parse_args(arguments)
    try:
        return int(parsed.run(parsed))
    except PescadorError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        return 1


if __name__ == "__main__":
    sys.exit(main())
