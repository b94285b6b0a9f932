"""All cases, in the order of the table, and how one is found and built."""

import cases  # noqa: F401
import frameworks  # noqa: F401
import on_ray  # noqa: F401
import parallel  # noqa: F401
import resume  # noqa: F401
from case import CASES
from jobs import Skip


def find(identifier):
    """Return the case and the parameters of an identifier."""
    for it in CASES.values():
        for params in it.grid("full"):
            if it.identifier(params) == identifier:
                return it, params
    raise KeyError(identifier)


def build(name, params, contestant, pescador=None):
    """Return the job of a contestant; `pescador` is the package, for those that have its API."""
    builder = CASES[name].builder(contestant)
    if builder is None:
        raise Skip("does something else")
    return builder(**params) if pescador is None else builder(pescador, **params)
