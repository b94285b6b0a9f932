"""Restore states that another process has taken: a script of test_states.py."""

import pathlib
import pickle
import sys

import trees
from open_trees import build, plain

trees.Starts.limit = float("inf")


def main(path):
    for number, case in enumerate(pickle.loads(pathlib.Path(path).read_bytes())):
        description, state, expected, failure = case
        items, failed = [], None
        try:
            for item in build(description).open(state=state):
                items.append(plain(item))
        except Exception as error:
            failed = type(error)
        if items != expected or failed is not failure:
            raise SystemExit(f"tree {number} {description}: {items}, {failed}; not {expected}")


if __name__ == "__main__":
    main(sys.argv[1])
