"""
Balance an imbalanced set
=========================

Balance an imbalanced data set by sampling it in two levels.

Of the handwritten digits, some classes keep all of their samples and
some only a few. Drawing from all samples alike shows the classifier the
large classes most of the time. Mixing first within each class, then
over the classes, shows it all of them equally often.
"""

import numpy as np
from sklearn.datasets import load_digits
from sklearn.linear_model import SGDClassifier
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import train_test_split

import pescador


def sample(x, label):
    """Give one sample for ever; in real life, parts of a recording."""
    while True:
        yield {"X": x, "y": label}


def train(stream):
    model = SGDClassifier(average=True, random_state=0)
    batches = pescador.Streamer(pescador.buffer_stream, stream, 32)
    for batch in batches(max_iter=150):
        model.partial_fit(batch["X"], batch["y"], classes=range(10))
    return model


def main():
    X, y = load_digits(return_X_y=True)
    X, X_test, y, y_test = train_test_split(
        X / 16, y, test_size=0.3, random_state=0, stratify=y
    )
    # All of the digits 0 to 4, but ten samples each of 5 to 9.
    classes = []
    for digit in range(10):
        rows = np.flatnonzero(y == digit)[: None if digit < 5 else 10]
        classes.append(
            [pescador.Streamer(sample, X[i], digit) for i in rows]
        )

    pool = [streamer for members in classes for streamer in members]
    flat = pescador.ShuffledMux(pool, random_state=0)

    within_class = [
        pescador.StochasticMux(members, 8, 16, random_state=digit)
        for digit, members in enumerate(classes)
    ]
    hierarchical = pescador.ShuffledMux(within_class, random_state=0)

    print(
        "training samples per class:", [len(each) for each in classes]
    )
    for name, stream in [("samples", flat), ("classes", hierarchical)]:
        predicted = train(stream).predict(X_test)
        score = balanced_accuracy_score(y_test, predicted)
        print(f"all {name} alike: balanced accuracy {score:.3f}")


if __name__ == "__main__":
    main()
