"""
Train out of core
=================

Train on data that is never in memory as a whole.

The handwritten digits that scikit-learn ships are written as several hundred .npz files, each
with samples of a single digit, as data sets of many recordings are. A StochasticMux keeps a few
of the files open and mixes their samples, buffer_stream makes minibatches of them, a ZMQStreamer
does all of that in a background process, and a linear classifier learns from what arrives.
"""

import argparse
import contextlib
import pathlib
import resource
import sys
import tempfile
import time

import numpy as np
from sklearn.datasets import load_digits
from sklearn.linear_model import SGDClassifier
from sklearn.model_selection import train_test_split
from tqdm import tqdm

import pescador


def parse_arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shards", type=int, default=300, help="number of files (%(default)s)")
    parser.add_argument("--open", type=int, default=32, help="files open at a time (%(default)s)")
    parser.add_argument(
        "--rate", type=float, default=16, help="samples per visit to a file (%(default)s)"
    )
    parser.add_argument("--batch-size", type=int, default=32, help="(%(default)s)")
    parser.add_argument("--batches", type=int, default=600, help="to learn from (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(%(default)s)")
    parser.add_argument("--no-progress", action="store_true", help="show no progress bar")
    return parser.parse_args()


def write_shards(folder, X, y, n_shards):
    """Write the samples, sorted by digit, as `n_shards` files."""
    order = np.argsort(y, kind="stable")
    paths = []
    for i, rows in enumerate(np.array_split(order, n_shards)):
        paths.append(folder / f"{i:05d}.npz")
        np.savez(paths[-1], X=X[rows], y=y[rows])
    return paths


# The files that are open in this process, for the report at the end.
open_shards = set()


def samples(path):
    """Draw samples of one file for ever: others each time that the file is opened."""
    with np.load(path) as shard:
        X, y = shard["X"], shard["y"]
    open_shards.add(path)
    try:
        while True:
            i = np.random.randint(len(X))
            yield {"X": X[i], "y": y[i], "open": np.array(len(open_shards))}
    finally:
        open_shards.discard(path)


def peak_memory():
    """The most memory that this process and its largest child have used, in MB."""
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return [
        resource.getrusage(who).ru_maxrss / unit
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    ]


def main():
    args = parse_arguments()
    np.random.seed(args.seed)
    digits = load_digits()
    X, X_test, y, y_test = train_test_split(
        digits.data / 16, digits.target, test_size=0.25, random_state=args.seed
    )
    classifier = SGDClassifier(random_state=args.seed)
    with tempfile.TemporaryDirectory(prefix="pescador-") as folder:
        paths = write_shards(pathlib.Path(folder), X, y, args.shards)
        streamers = [pescador.Streamer(samples, path) for path in paths]
        mux = pescador.StochasticMux(
            streamers, args.open, args.rate, mode="single_active", random_state=args.seed
        )
        batches = pescador.Streamer(pescador.buffer_stream, mux, args.batch_size)
        background = pescador.ZMQStreamer(batches)

        start = time.perf_counter()
        most_open = n_samples = 0
        with contextlib.closing(background.iterate(max_iter=args.batches)) as stream:
            for batch in tqdm(
                stream, total=args.batches, unit=" batches", disable=args.no_progress or None
            ):
                classifier.partial_fit(batch["X"], batch["y"], classes=range(10))
                most_open = max(most_open, int(batch["open"].max()))
                n_samples += len(batch["y"])
        seconds = time.perf_counter() - start

    here, worker = peak_memory()
    print(f"accuracy on {len(y_test)} held-out digits: {classifier.score(X_test, y_test):.3f}")
    print(f"samples per second: {n_samples / seconds:,.0f} (training included)")
    print(f"peak memory: {here:.0f} MB here, {worker:.0f} MB in the background process")
    print(f"shards open at most: {most_open} of {args.shards}")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
