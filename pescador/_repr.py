"""How streamers describe themselves: in one line for messages, as a tree for people.

It reads attributes and never runs code of the user's: an argument is named, measured or
abbreviated, not formatted. What it costs and how long it gets does not depend on how much data
there is, and objects that are half built or hold themselves are no error.

It imports nothing of the package: `pescador.core` registers the class of streamers here.
"""

import functools
import inspect
import pathlib
import types
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

_LINE = 100  # characters of a one-line description
_TEXT = 32  # of a string in it
_ARGUMENTS = 4
_LINES = 30  # of a tree
_EACH = 6  # children that are shown one by one; more are grouped by kind
_KINDS = 8
_LOOKED_AT = 100_000  # children that are looked at


_streamer_class: type = type(None)


def register(cls: type) -> None:
    """Note the class whose instances are streamers."""
    global _streamer_class
    _streamer_class = cls


class Node(NamedTuple):
    """A line of a tree and what is below it."""

    label: str
    children: "list[Node]"

    def n_lines(self) -> int:
        """Return how many lines it takes with what is below it."""
        return 1 + sum(child.n_lines() for child in self.children)


# ---------------------------------------------------------------------------------- one line


def _is(value: Any, *kinds: type) -> bool:
    # By the type: isinstance would ask the value for its __class__.
    return issubclass(type(value), kinds)


def _is_streamer(value: Any) -> bool:
    return _is(value, _streamer_class)


def _cut(text: str, width: int) -> str:
    """Leave out the middle of a text that is longer than `width`."""
    if len(text) <= width:
        return text
    head = (width - 3) // 2
    return f"{text[:head]}...{text[len(text) - (width - 3 - head) :]}"


def _string(value: str | bytes) -> str:
    """Return the repr of a string, and of its two ends if it is long."""
    dots: Any = b"..." if isinstance(value, bytes) else "..."
    if len(value) > _TEXT:
        value = value[: _TEXT // 2 - 3] + dots + value[-_TEXT // 2 :]
    return repr(value)


def _name(function: Any) -> str:
    name = getattr(function, "__name__", None)
    return _cut(name if isinstance(name, str) else type(function).__name__, _TEXT)


def _number(value: Any) -> str:
    if type(value) is int and value.bit_length() > 100:
        return f"int of {value.bit_length():,} bits"
    return _cut(str(value), _TEXT)


def _array(array: Any) -> str:
    shape = ", ".join(map(str, array.shape))
    return f"{_name(type(array))} {_cut(str(array.dtype), _TEXT)}[{shape}]"


def _container(value: Any, deep: bool) -> str:
    kind = type(value)
    if not deep or kind not in (list, tuple) or len(value) > 3:
        return f"{kind.__name__} of {len(value):,}"
    items = ", ".join(brief(item, deep=False) for item in value)
    if kind is list:
        return f"[{items}]"
    return f"({items},)" if len(value) == 1 else f"({items})"


_FUNCTIONS = (types.FunctionType, types.BuiltinFunctionType, types.MethodType, type)


def brief(value: Any, deep: bool = True) -> str:
    """Return a few words for any value.

    Parameters
    ----------
    value : object
        What to describe.
    deep : bool
        Whether to look into short lists and tuples.
    """
    kind = type(value)
    if kind in (type(None), bool, int, float, complex, range):
        return _number(value)
    if issubclass(kind, str):
        return _string(str.__str__(value))
    if issubclass(kind, bytes):
        return _string(bytes.__getitem__(value, slice(None)))
    if issubclass(kind, pathlib.PurePath):
        return f"{_name(kind)}({_string(str(value))})"
    if issubclass(kind, np.ndarray):
        return _array(value)
    if issubclass(kind, np.generic) and not issubclass(kind, np.void):
        return _number(value)
    if _is_streamer(value):
        return f"{_name(kind)}({_inside(value.__dict__)})"
    if issubclass(kind, _FUNCTIONS):
        return _name(value)
    if kind is functools.partial:
        return f"partial({_name(value.func)})"
    if kind is types.GeneratorType:
        return f"generator {_name(value)}"
    if kind in (list, tuple, set, frozenset, dict):
        return _container(value, deep)
    return f"<{_name(kind)}>"


def _inside(fields: dict[str, Any]) -> str:
    """Return what a streamer that is only mentioned is made of, without going deeper."""
    if "streamers" in fields:
        return _size(fields["streamers"])
    if _reads_data(fields):
        return brief(fields["data"], deep=False)
    source = fields.get("streamer")
    if _is_streamer(source):
        return "..."
    return brief(source, deep=False) + (", ..." if _n_arguments(fields) else "")


def _reads_data(fields: dict[str, Any]) -> bool:
    """Whether these are the attributes of a source, which reads data instead of a streamer."""
    return "data" in fields and "streamer" not in fields


def _data(value: Any) -> str:
    """Return what several sources read from have in common."""
    path = str(value) if _is(value, str, pathlib.PurePath) else ""
    suffix = pathlib.PurePath(path).suffix
    return f"{_cut(suffix, _TEXT)} files" if suffix else _name(type(value))


def _size(streamers: Any) -> str:
    """Return how many streams a mux has, or what makes them."""
    if _is_streamer(streamers):
        return _name(type(streamers))
    if _is(streamers, list, tuple, dict):
        return f"{len(streamers):,} stream{'' if len(streamers) == 1 else 's'}"
    return brief(streamers, deep=False)


@functools.cache
def _defaults(ours: type) -> dict[str, Any]:
    """Return the parameters of a class of this package, and their defaults."""
    # The streams have a place of their own, and weights are said beside the streams.
    skipped = ("streamer", "streamers", "data", "weights", "args", "kwargs")
    parameters = inspect.signature(ours).parameters.items()
    return {name: parameter.default for name, parameter in parameters if name not in skipped}


def _settings(fields: dict[str, Any], kind: type) -> Iterator[str]:
    """Yield the parameters that have not their default value, as name=value."""
    ours = next(cls for cls in kind.__mro__ if cls.__module__.partition(".")[0] == __package__)
    for name, default in _defaults(ours).items():
        value = fields.get(name, default)
        if value is default or (type(value) is type(default) and bool(value == default)):
            continue
        yield f"{name}={brief(value, deep=_is(value, list))}"


def _passed(fields: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments of a streamer; none where there is nothing of the kind."""
    args: Any = fields.get("args")
    kwargs: Any = fields.get("kwargs")
    return args if _is(args, tuple) else (), kwargs if _is(kwargs, dict) else {}


def _arguments(fields: dict[str, Any]) -> Iterator[str]:
    args, kwargs = _passed(fields)
    for value in args:
        yield brief(value, deep=False)
    for name, value in kwargs.items():
        yield f"{name}={brief(value, deep=False)}"


def _n_arguments(fields: dict[str, Any]) -> int:
    return sum(map(len, _passed(fields)))


def _counted(fields: dict[str, Any]) -> list[str]:
    n = _n_arguments(fields)
    return [f"{n:,} argument{'' if n == 1 else 's'}"] if n else []


def _head(streamer: Any, inside: list[str] | None = None, size: str | None = None) -> str:
    """Describe a streamer in one line.

    Parameters
    ----------
    streamer : Streamer
        May be half built.
    inside : list of str or None
        What to say instead of the arguments of a plain streamer.
    size : str or None
        What to say instead of the number of streams of a mux, or of the data of a source.
    """
    kind = type(streamer)
    fields = streamer.__dict__
    if "streamers" in fields:
        parts = [size or _size(fields["streamers"]), *_settings(fields, kind)]
    elif "streamer" in fields:
        parts = [brief(fields["streamer"])]
        if inside is not None:
            parts += inside
        elif _n_arguments(fields) > _ARGUMENTS:
            parts += _counted(fields)
        else:
            parts += _arguments(fields)
        parts += _settings(fields, kind)
        if sum(map(len, parts)) > _LINE - 20:
            parts = [parts[0], *_counted(fields)]
    elif _reads_data(fields):
        parts = [size or brief(fields["data"]), *_settings(fields, kind)]
    else:
        return f"<{_name(kind)} that was not initialised>"
    return _cut(f"{_name(kind)}({', '.join(parts)})", _LINE)


def line(streamer: Any) -> str:
    """Return the description of a streamer in one line of at most 100 characters."""
    return _head(streamer)


# -------------------------------------------------------------------------------------- tree


def _children(streamer: Any) -> list[Any]:
    """Return the streamers that a streamer reads from."""
    fields = streamer.__dict__
    if "streamers" in fields:
        streamers = fields["streamers"]
        return list(streamers) if _is(streamers, list, tuple) else []
    args, kwargs = _passed(fields)
    found = (fields.get("streamer"), *args, *kwargs.values())
    return [value for value in found if _is_streamer(value)]


def _kind(streamer: Any) -> Any:
    """Return what streamers have in common that are shown as one line."""
    if not _is_streamer(streamer):
        return type(streamer)
    fields = streamer.__dict__
    if "streamers" in fields:
        return (type(streamer), *_settings(fields, type(streamer)))
    if _reads_data(fields):
        return type(streamer), _data(fields["data"])
    source = fields.get("streamer")
    if type(source) is functools.partial:
        source = source.func
    if type(source) is types.MethodType:
        source = source.__func__
    what = id(source) if _is(source, *_FUNCTIONS) else type(source)
    return type(streamer), what, _n_arguments(fields)


def _weights(streamer: Any, n: int) -> Any:
    """Return the weights of n streams; None if they are all the same, or make no sense."""
    weights = streamer.__dict__.get("weights")
    if not _is(weights, np.ndarray) or weights.shape != (n,) or weights.dtype.kind != "f":
        return None
    return None if n == 0 or bool((weights == weights[0]).all()) else weights


def _weighing(weights: Any, members: list[int]) -> str:
    if weights is None:
        return ""
    least, most = f"{weights[members].min():.3g}", f"{weights[members].max():.3g}"
    if least == most:
        return f", weight {least}" + (" each" if len(members) > 1 else "")
    return f", weights {least} to {most}"


def _span(sizes: list[int]) -> str:
    least, most = min(sizes), max(sizes)
    if least == most:
        return f"{least:,} stream{'' if least == 1 else 's'}"
    return f"{least:,} to {most:,} streams"


def _group(members: list[Any]) -> str:
    """Describe several streamers of a kind."""
    first = members[0]
    if not _is_streamer(first):
        return brief(first)
    if "streamers" in first.__dict__:
        pools = [member.__dict__["streamers"] for member in members]
        if all(_is(pool, list) for pool in pools):
            return _head(first, size=_span([len(pool) for pool in pools]))
        return _head(first)
    if _reads_data(first.__dict__):
        what = _data(first.__dict__["data"])
        settings = {tuple(_settings(each.__dict__, type(each))) for each in members}
        return _head(first, size=what) if len(settings) == 1 else f"{_name(type(first))}({what})"
    source = first.__dict__.get("streamer")
    if _is(source, *_FUNCTIONS, functools.partial):
        return _head(first, _counted(first.__dict__))
    return f"{_name(type(first))}({_name(type(source))})"


def _below(streamer: Any, depth: int, path: tuple[int, ...]) -> list[Node]:
    children = _children(streamer)
    weights = _weights(streamer, len(children))
    if len(children) <= _EACH:
        return [
            _node(child, depth, path, after=_weighing(weights, [i]))
            for i, child in enumerate(children)
        ]
    kinds: dict[Any, list[int]] = {}
    for i, child in enumerate(children[:_LOOKED_AT]):
        kinds.setdefault(_kind(child), []).append(i)
    nodes = []
    shown = 0
    for members in list(kinds.values())[:_KINDS]:
        shown += len(members)
        first = children[members[0]]
        after = _weighing(weights, members)
        if len(members) == 1:
            nodes.append(_node(first, depth, path, after=after))
            continue
        label = f"{len(members):,} x {_group([children[i] for i in members])}{after}"
        example = _node(first, depth, path).children
        nodes.append(Node(f"{label}, the first of them:" if example else label, example))
    if shown < len(children):
        nodes.append(Node(f"{len(children) - shown:,} more", []))
    return nodes


def _node(streamer: Any, depth: int, path: tuple[int, ...], after: str = "") -> Node:
    if not _is_streamer(streamer):
        return Node(brief(streamer) + after, [])
    label = _head(streamer) + after
    if id(streamer) in path:
        return Node(f"{label}, which is above", [])
    return Node(label, _below(streamer, depth - 1, (*path, id(streamer))) if depth else [])


def tree(streamer: Any) -> Node:
    """Return the tree of a streamer, as deep as fits some thirty lines."""
    fields = streamer.__dict__
    after = ""
    if getattr(streamer, "is_activated_copy", False) is True:
        after = ", activated"
    elif type(n := fields.get("active_count_")) is int and n > 0:
        after = f", {n:,} open iteration{'' if n == 1 else 's'}"
    best = _node(streamer, 1, (), after)
    for depth in range(2, 8):
        deeper = _node(streamer, depth, (), after)
        if not best.n_lines() < deeper.n_lines() <= _LINES:
            break
        best = deeper
    return best


def text(node: Node, indent: str = "") -> str:
    """Return a tree as indented lines."""
    below = [text(child, f"{indent}    ") for child in node.children]
    return "\n".join([indent + node.label, *below])


def as_html(node: Node) -> str:
    """Return a tree as HTML whose branches fold, in the colours of the page that it is in."""
    # Not above: who shows nothing in a notebook can do without its tables.
    import html

    label = f"<code>{html.escape(node.label)}</code>"
    if not node.children:
        return f"<div>{label}</div>"
    below = "".join(as_html(child) for child in node.children)
    return (
        f'<details open=""><summary>{label}</summary>'
        f'<div style="margin-left: 1.5em">{below}</div></details>'
    )
