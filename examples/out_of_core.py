"""
Train out of core
=================

Train on data that is never in memory as a whole.

The handwritten digits that scikit-learn ships are written as several
hundred .npz files, each with samples of a single digit, as data sets of
many recordings are. A StochasticMux keeps a few of the files open and
mixes their samples, buffer_stream makes minibatches of them, a
ZMQStreamer does all of that in a background process, and a linear
classifier learns from what arrives.
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
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for option, default, what in [
        ("--shards", 300, "number of files"),
        ("--open", 32, "files open at a time"),
        ("--rate", 16.0, "samples per visit to a file"),
        ("--batch-size", 32, "samples in a batch"),
        ("--batches", 600, "batches to learn from"),
        ("--seed", 0, "of all random numbers"),
    ]:
        parser.add_argument(
            option,
            type=type(default),
            default=default,
            help=f"{what} (%(default)s)",
        )
    parser.add_argument(
        "--no-progress",
        action="store_true",
        help="show no progress bar",
    )
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
    """Draw samples of one file for ever, others at each visit."""
    with np.load(path) as shard:
        X, y = shard["X"], shard["y"]
    open_shards.add(path)
    try:
        while True:
            i = np.random.randint(len(X))
            n_open = np.array(len(open_shards))
            yield {"X": X[i], "y": y[i], "open": n_open}
    finally:
        open_shards.discard(path)


def peak_memory():
    """The most MB that this process and its largest child have used."""
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
        digits.data / 16,
        digits.target,
        test_size=0.25,
        random_state=args.seed,
    )
    classifier = SGDClassifier(random_state=args.seed)
    with tempfile.TemporaryDirectory(prefix="pescador-") as folder:
        paths = write_shards(pathlib.Path(folder), X, y, args.shards)
        streamers = [pescador.Streamer(samples, path) for path in paths]
        mux = pescador.StochasticMux(
            streamers,
            args.open,
            args.rate,
            mode="single_active",
            random_state=args.seed,
        )
        size = args.batch_size
        batches = pescador.Streamer(pescador.buffer_stream, mux, size)
        background = pescador.ZMQStreamer(batches)

        start = time.perf_counter()
        most_open = n_samples = 0
        stream = background.iterate(args.batches)
        with contextlib.closing(stream):
            for batch in tqdm(
                stream,
                total=args.batches,
                unit=" batches",
                disable=args.no_progress or None,
            ):
                X, y = batch["X"], batch["y"]
                classifier.partial_fit(X, y, classes=range(10))
                most_open = max(most_open, int(batch["open"].max()))
                n_samples += len(y)
        seconds = time.perf_counter() - start

    here, worker = peak_memory()
    score = classifier.score(X_test, y_test)
    print(f"accuracy on {len(y_test)} held-out digits: {score:.3f}")
    print(
        f"samples per second: {n_samples / seconds:,.0f} with training"
    )
    print(f"peak memory: {here:.0f} MB here", end=", ")
    print(f"{worker:.0f} MB in the background process")
    print(f"shards open at most: {most_open} of {args.shards}")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
