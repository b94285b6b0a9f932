"""What a case is, and how one is written."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from contestants import OURS, PEER

# All cases; `suite.py` loads the modules that write them.
CASES: "dict[str, Case]" = {}


@dataclass
class Case:
    """One kind of work; see `case`."""

    name: str
    doc: str
    unit: str
    section: str
    short: list[dict[str, Any]]
    full: list[dict[str, Any]]
    tiny: dict[str, Any]
    warm: Callable[..., int]
    n_bytes: Callable[..., int] | None
    parallel: bool
    same: bool
    files: Callable[..., Any] | None
    patience: float | None
    builders: dict[str, Callable[..., Any]] = field(default_factory=dict)
    ways: dict[str, str] = field(default_factory=dict)

    def by(self, *contestants, way=""):
        """Say how `contestants` do this work; `way` is what the table says of it."""

        def register(builder):
            for name in contestants:
                self.builders[name] = builder
                self.ways[name] = way
            return builder

        return register

    def builder(self, contestant):
        """How a contestant does this work: a way of its own, or the one that has the API."""
        common = self.builders["pescador"] if contestant in (OURS, PEER) else None
        return self.builders.get(contestant, common)

    def identifier(self, params):
        return "/".join([self.name, *(f"{key}={value}" for key, value in params.items())])

    def grid(self, profile):
        """The parameters to run: those of the short profile, then those of the full one."""
        more = self.full if profile == "full" else []
        return self.short + [params for params in more if params not in self.short]


def case(
    unit,
    section,
    short=({},),
    full=(),
    tiny=None,
    warm=lambda **params: 1000,
    n_bytes=None,
    parallel=False,
    same=False,
    files=None,
    patience=None,
):
    """Make a function ``(pescador, **params)`` that returns a job into a case.

    unit: what one unit of work is. section: of the table. short, full: parameters, as dicts.
    tiny: parameters for ``make test``. warm: how many units of work until the state is steady.
    n_bytes: the size of one unit. parallel: whether the job has other processes, and so gets all
    processors. same: whether all contestants give equal samples in the same order. files: writes
    what is read, if it is not there yet; see ``data.py``. patience: how many seconds an answer may
    take, if not as many as the profile says.
    """

    def register(build):
        it = Case(
            name=build.__name__,
            doc=build.__doc__,
            unit=unit,
            section=section,
            short=list(short),
            full=list(full),
            tiny=tiny or {},
            warm=warm,
            n_bytes=n_bytes,
            parallel=parallel,
            same=same,
            files=files,
            patience=patience,
        )
        it.builders["pescador"] = build
        CASES[it.name] = it
        return it

    return register


def over(name, *values, **fixed):
    """Return parameters in which `name` takes each of `values`."""
    return [{name: value, **fixed} for value in values]
