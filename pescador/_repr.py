"""How streamers describe themselves: in one line for messages, as a tree for people.

Attributes are read, and no code of the user's is run: an argument is named, measured or
abbreviated, not formatted. The cost and the length of a description do not grow with the data.
Streamers that are half built, or contain themselves, have one too.

This module imports nothing of the package: `pescador.core` registers the class of streamers here.
"""

import functools
import inspect
import pathlib
import types
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

_LINE = 100  # characters of a one-line description
_TEXT = 32  # characters of a string in it
_ARGUMENTS = 4  # arguments that are named one by one; more are counted
_LINES = 30  # lines of a tree
_EACH = 6  # children that are shown one by one; more are grouped by kind
_KINDS = 8  # groups
_LOOKED_AT = 100_000  # children that are grouped; the rest is counted

_FUNCTIONS = (types.FunctionType, types.BuiltinFunctionType, types.MethodType, type)

_streamer_class: type = type(None)


def register(cls: type) -> None:
    """Note the class whose instances are streamers."""
    global _streamer_class
    _streamer_class = cls


class Mark:
    """A value that there is one of, shown and pickled by its public name."""

    def __init__(self, name: str) -> None:
        self.name = name
        # Where pickle looks for it.
        self.__module__ = "pescador"

    def __repr__(self) -> str:
        return f"pescador.{self.name}"

    def __reduce__(self) -> str:
        return self.name


class Node(NamedTuple):
    """A line of a tree and what is below it."""

    label: str
    children: "list[Node]"

    def n_lines(self) -> int:
        """Return how many lines it takes with what is below it."""
        return 1 + sum(child.n_lines() for child in self.children)


# ------------------------------------------------------------------------------------- values


def _is(value: Any, *kinds: type) -> bool:
    # By the type: isinstance would ask the value for its __class__.
    return issubclass(type(value), kinds)


def cut(text: str, width: int) -> str:
    """Leave out the middle of a text that is longer than `width`."""
    if len(text) <= width:
        return text
    head = (width - 3) // 2
    return f"{text[:head]}...{text[len(text) - (width - 3 - head) :]}"


def count(n: int, noun: str) -> str:
    """Return a number of things in words."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def _string(value: str | bytes) -> str:
    """Return the repr of a string, and of its two ends if it is long."""
    dots: Any = b"..." if isinstance(value, bytes) else "..."
    if len(value) > _TEXT:
        value = value[: _TEXT // 2 - 3] + dots + value[-_TEXT // 2 :]
    return repr(value)


def _name(function: Any) -> str:
    name = getattr(function, "__name__", None)
    return cut(name if isinstance(name, str) else type(function).__name__, _TEXT)


def brief(value: Any, deep: bool = True) -> str:
    """Return a few words for any value; `deep` looks into short lists and tuples."""
    kind = type(value)
    if issubclass(kind, str):
        return _string(str.__str__(value))
    if issubclass(kind, bytes):
        return _string(bytes.__getitem__(value, slice(None)))
    if kind is int and value.bit_length() > 100:
        return f"int of {value.bit_length():,} bits"
    if kind in (type(None), bool, int, float, complex, range) or (
        issubclass(kind, np.generic) and not issubclass(kind, np.void)
    ):
        return cut(str(value), _TEXT)
    if issubclass(kind, pathlib.PurePath):
        return f"{_name(kind)}({_string(str(value))})"
    if issubclass(kind, np.ndarray):
        shape = ", ".join(map(str, value.shape))
        return f"{_name(kind)} {cut(str(value.dtype), _TEXT)}[{shape}]"
    if _is(value, _streamer_class):
        return f"{_name(kind)}({_inside(value.__dict__)})"
    if issubclass(kind, _FUNCTIONS):
        return _name(value)
    if kind is Mark:
        return repr(value)
    if kind is functools.partial:
        return f"partial({_name(value.func)})"
    if kind is types.GeneratorType:
        return f"generator {_name(value)}"
    if kind in (list, tuple, set, frozenset, dict):
        if not deep or kind not in (list, tuple) or len(value) > 3:
            return f"{kind.__name__} of {len(value):,}"
        items = ", ".join(brief(item, deep=False) for item in value)
        return f"[{items}]" if kind is list else f"({items}{',' * (len(value) == 1)})"
    return f"<{_name(kind)}>"


# ------------------------------------------------------------------------------------- one line
# Attributes tell what a streamer is: a mux has `streamers`, a source `data`, others `streamer`.


def _inside(fields: dict[str, Any]) -> str:
    """Return what a streamer that is only mentioned is made of, without going deeper."""
    if "streamers" in fields:
        return _size(fields["streamers"])
    if _reads_data(fields):
        return brief(fields["data"], deep=False)
    source = fields.get("streamer")
    if _is(source, _streamer_class):
        return "..."
    return brief(source, deep=False) + (", ..." if _n_arguments(fields) else "")


def _reads_data(fields: dict[str, Any]) -> bool:
    """Whether these are the attributes of a source, which reads data instead of a streamer."""
    return "data" in fields and "streamer" not in fields


def _size(streamers: Any) -> str:
    """Return how many streams a mux has, or what makes them."""
    if _is(streamers, _streamer_class):
        return _name(type(streamers))
    if _is(streamers, Sequence, dict):
        return count(len(streamers), "stream")
    return brief(streamers, deep=False)


@functools.cache
def _defaults(ours: type) -> dict[str, Any]:
    """Return the parameters of a class of this package, and their defaults."""
    # Streams come first in a description, and weights are shown beside the streams.
    skipped = ("streamer", "streamers", "data", "weights", "args", "kwargs")
    parameters = inspect.signature(ours).parameters.items()
    return {name: parameter.default for name, parameter in parameters if name not in skipped}


def _settings(streamer: Any) -> list[str]:
    """Return the parameters that have not their default value, as name=value."""
    kinds = type(streamer).__mro__
    ours = next(cls for cls in kinds if cls.__module__.partition(".")[0] == __package__)
    found = []
    others = getattr(ours, "__pescador_shown__", {})
    for name, default in {**_defaults(ours), **others}.items():
        value = streamer.__dict__.get(name, default)
        if value is default or (type(value) is type(default) and bool(value == default)):
            continue
        found.append(f"{name}={brief(value, deep=_is(value, list))}")
    return found


def _passed(fields: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments of a streamer; none where there is nothing of the kind."""
    args: Any = fields.get("args")
    kwargs: Any = fields.get("kwargs")
    return args if _is(args, tuple) else (), kwargs if _is(kwargs, dict) else {}


def _n_arguments(fields: dict[str, Any]) -> int:
    return sum(map(len, _passed(fields)))


def _counted(fields: dict[str, Any]) -> list[str]:
    n = _n_arguments(fields)
    return [count(n, "argument")] if n else []


def _arguments(fields: dict[str, Any]) -> list[str]:
    """Return a few words for each argument, or how many there are."""
    if _n_arguments(fields) > _ARGUMENTS:
        return _counted(fields)
    args, kwargs = _passed(fields)
    found = [brief(value, deep=False) for value in args]
    found += [f"{name}={brief(value, deep=False)}" for name, value in kwargs.items()]
    return found if sum(map(len, found)) <= _LINE - 40 else _counted(fields)


def _call(streamer: Any, *parts: str) -> str:
    return cut(f"{_name(type(streamer))}({', '.join(parts)})", _LINE)


def line(streamer: Any) -> str:
    """Return the description of a streamer in one line of at most 100 characters."""
    fields = streamer.__dict__
    if "streamers" in fields:
        return _call(streamer, _size(fields["streamers"]), *_settings(streamer))
    if _reads_data(fields):
        return _call(streamer, brief(fields["data"]), *_settings(streamer))
    if "streamer" in fields:
        source = brief(fields["streamer"])
        return _call(streamer, source, *_arguments(fields), *_settings(streamer))
    return f"<{_name(type(streamer))} that was not initialised>"


# --------------------------------------------------------------------------------------- groups


def _kind(streamer: Any) -> Any:
    """Return what streamers have in common that are shown as one line."""
    if not _is(streamer, _streamer_class):
        return type(streamer)
    fields = streamer.__dict__
    if "streamers" in fields:
        return (type(streamer), *_settings(streamer))
    if _reads_data(fields):
        return type(streamer), _data(fields["data"])
    source = fields.get("streamer")
    if type(source) is functools.partial:
        source = source.func
    if type(source) is types.MethodType:
        source = source.__func__
    what = id(source) if _is(source, *_FUNCTIONS) else type(source)
    return type(streamer), what, _n_arguments(fields)


def _data(value: Any) -> str:
    """Return what several sources read from have in common."""
    path = str(value) if _is(value, str, pathlib.PurePath) else ""
    suffix = pathlib.PurePath(path).suffix
    return f"{cut(suffix, _TEXT)} files" if suffix else _name(type(value))


def _group(members: list[Any]) -> str:
    """Describe several streamers of a kind by what they share."""
    first = members[0]
    if not _is(first, _streamer_class):
        return brief(first)
    fields = first.__dict__
    if "streamers" in fields:
        pools = [member.__dict__["streamers"] for member in members]
        sizes = [len(pool) for pool in pools if _is(pool, Sequence)]
        if len(sizes) < len(pools) or min(sizes) == max(sizes):
            return line(first)
        size = f"{min(sizes):,} to {max(sizes):,} streams"
        return _call(first, size, *_settings(first))
    if _reads_data(fields):
        settings = _settings(first)
        shared = settings if all(_settings(each) == settings for each in members) else []
        return _call(first, _data(fields["data"]), *shared)
    source = fields.get("streamer")
    if _is(source, *_FUNCTIONS, functools.partial):
        return _call(first, brief(source), *_counted(fields), *_settings(first))
    return _call(first, _name(type(source)))


# -------------------------------------------------------------------------------------- tree


def read_by(streamer: Any) -> Sequence[Any]:
    """Return the streamers that a streamer reads from."""
    fields = streamer.__dict__
    if "streamers" in fields:
        streamers = fields["streamers"]
        return streamers if _is(streamers, Sequence) else []
    args, kwargs = _passed(fields)
    found = (fields.get("streamer"), *args, *kwargs.values())
    return [value for value in found if _is(value, _streamer_class)]


def _weights(streamer: Any, n: int) -> Any:
    """Return the weights of n streams; None if they are all the same, or make no sense."""
    weights = streamer.__dict__.get("weights")
    if not _is(weights, np.ndarray) or weights.shape != (n,) or weights.dtype.kind != "f":
        return None
    return None if n == 0 or bool((weights == weights[0]).all()) else weights


def _weighing(weights: Any, members: list[int]) -> str:
    """Return what is said of the weights of some children, or nothing."""
    if weights is None:
        return ""
    least, most = f"{weights[members].min():.3g}", f"{weights[members].max():.3g}"
    if least == most:
        return f", weight {least}" + (" each" if len(members) > 1 else "")
    return f", weights {least} to {most}"


def _below(streamer: Any, depth: int, path: tuple[int, ...]) -> list[Node]:
    """Return the children of a streamer, grouped by kind if they are many."""
    children = read_by(streamer)
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
    if not _is(streamer, _streamer_class):
        return Node(brief(streamer) + after, [])
    label = line(streamer) + after
    if id(streamer) in path:
        return Node(f"{label}, which is above", [])
    return Node(label, _below(streamer, depth - 1, (*path, id(streamer))) if depth else [])


def tree(streamer: Any) -> Node:
    """Return the tree of a streamer, as deep as thirty lines allow."""
    fields = streamer.__dict__
    after = ""
    if getattr(streamer, "is_activated_copy", False) is True:
        after = ", activated"
    elif type(n := fields.get("active_count_")) is int and n > 0:
        after = f", {count(n, 'open iteration')}"
    best = _node(streamer, 1, (), after)
    for depth in range(2, 8):
        deeper = _node(streamer, depth, (), after)
        if not best.n_lines() < deeper.n_lines() <= _LINES:
            break
        best = deeper
    return _with_notes(best, streamer)


def _with_notes(node: Node, streamer: Any) -> Node:
    """Return a tree with what the classes of streamers say beneath them, and of which streams."""
    if not (_is(streamer, _streamer_class) and node.children):
        return node
    below, children = node.children, read_by(streamer)
    if len(below) == len(children):
        below = [_with_notes(one, child) for one, child in zip(below, children, strict=True)]
    notes = getattr(type(streamer), "__pescador_notes__", None)
    said = [] if notes is None else notes(streamer)
    return Node(
        node.label,
        below + [Node(note, [] if of is None else [_node(of, 0, ())]) for note, of in said],
    )


def open_tree(visit: Any, streamer: Any) -> Node:
    """Return a tree of what is open in an open stream; of its streamer, where nothing is."""
    if visit is None:
        return tree(streamer)
    what, given, below = visit.shown()
    label = line(what) + ("" if given is None else f", {given:,} items given")
    children = [open_tree(one, None) for one in below[:_EACH]]
    if len(below) > _EACH:
        children.append(Node(f"and {len(below) - _EACH:,} more", []))
    return Node(label, children)


def text(node: Node, indent: str = "") -> str:
    """Return a tree as indented lines."""
    below = [text(child, f"{indent}    ") for child in node.children]
    return "\n".join([indent + node.label, *below])


def as_html(node: Node) -> str:
    """Return a tree as HTML whose branches fold, in the colours of the page that it is in."""
    # Not at the top: its tables take memory that only notebooks need.
    import html

    label = f"<code>{html.escape(node.label)}</code>"
    if not node.children:
        return f"<div>{label}</div>"
    below = "".join(as_html(child) for child in node.children)
    return (
        f'<details open=""><summary>{label}</summary>'
        f'<div style="margin-left: 1.5em">{below}</div></details>'
    )
