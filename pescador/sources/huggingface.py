"""Data sets of Hugging Face: columns of an Arrow table that is mapped, in an order of rows.

``datasets`` is not imported: who has such a data set has done so.
"""

import sys
import weakref
from typing import Any

import numpy as np

from ..exceptions import ArgumentError, DataError
from .formats import as_arrays, table_columns
from .npy import select

__all__ = ["Fingerprint", "check_dataset", "is_dataset", "open_dataset"]

# Formats whose values are arrays, each with dtypes of its own.
_ARRAYS = ("numpy", "torch", "jax", "tensorflow")


class Fingerprint:
    """What tells that a data set has the rows and the format that it had.

    Parameters
    ----------
    data : datasets.Dataset
    """

    def __init__(self, data: Any) -> None:
        self._data = weakref.ref(data)
        self._fingerprint = data._fingerprint

    def holds(self) -> bool:
        """Whether it is unchanged."""
        data = self._data()
        return data is not None and data._fingerprint == self._fingerprint


def is_dataset(data: Any) -> bool:
    """Tell whether this is a ``datasets.Dataset``."""
    return isinstance(data, getattr(sys.modules.get("datasets"), "Dataset", ()))


def check_dataset(data: Any) -> None:
    """Refuse a data set whose rows are made by a function of its user."""
    if data.format["type"] == "custom":
        raise ArgumentError(
            "data has a transform (with_transform), which a source does not call: apply it to the "
            "items, by pescador.transform, and pass data.with_format(None)"
        )


def open_dataset(data: Any, keys: tuple[Any, ...] | None) -> dict[Any, Any]:
    """Return the columns of a data set, as a store holds them.

    Parameters
    ----------
    data : datasets.Dataset
        Its format says which columns are taken if `keys` are None, and what they are converted to.
    keys : tuple or None
        Columns.

    Returns
    -------
    arrays : dict
    """
    check_dataset(data)
    form = data.format
    names = data.column_names if keys or form["output_all_columns"] else form["columns"]
    chosen = select("data", names, keys)
    order = data._indices
    if order is not None:
        order = order.table.column(0).to_numpy().astype(np.int64)
        if len(order) and not 0 <= order.min() <= order.max() < len(data.data):
            raise DataError(f"data has {len(data.data)} rows, and indices beyond them")
    dtypes = {}
    if form["type"] in _ARRAYS and len(data):
        converted = [key for key in chosen if key in form["columns"]]
        first = data.select(range(1))
        for key in converted:
            try:
                # Of scalars, rows by themselves are not converted, but parts of columns are.
                dtypes[key] = np.asarray(first[key][:]).dtype
            except Exception as error:
                raise DataError(
                    f"data: key {key!r} cannot be converted to its format, {form['type']!r}: "
                    f"{type(error).__name__}: {error}"
                ) from error
    columns = table_columns("data", data.data.table, chosen, order, dtypes)
    return as_arrays(columns)
