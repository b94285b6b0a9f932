"""Streams in `fit` of Keras, on the backend that KERAS_BACKEND names."""

import os

import numpy as np
import pytest

pytest.importorskip("keras", reason="keras is not installed")
pytest.importorskip(os.environ.get("KERAS_BACKEND", "tensorflow"), reason="no such backend")

import keras

import pescador
import pescador.keras
from pescador.keras import Dataset

# Of Keras, about the tensors of torch.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def counted(n, start=0):
    """Pairs of batches, each of its number."""
    for i in range(start, start + n):
        yield np.full((2, 1), i, np.float32), np.full((2, 1), i, np.float32)


class Batches(keras.callbacks.Callback):
    """The numbers of the batches of each epoch: the targets are they, and predictions are 0."""

    def __init__(self):
        super().__init__()
        self.epochs, self.validations = [], []

    def on_epoch_begin(self, epoch, logs=None):
        self.epochs.append([])

    def on_train_batch_begin(self, batch, logs=None):
        self.model.reset_metrics()

    def on_train_batch_end(self, batch, logs=None):
        self.epochs[-1].append(round(logs["loss"] ** 0.5))

    def on_test_begin(self, logs=None):
        self.validations.append([])

    def on_test_batch_begin(self, batch, logs=None):
        self.model.reset_metrics()

    def on_test_batch_end(self, batch, logs=None):
        self.validations[-1].append(round(logs["loss"] ** 0.5))


def silent(is_built=False):
    """A model whose predictions are 0, and stay so."""
    layers = [keras.Input((1,))] if is_built else []
    model = keras.Sequential([*layers, keras.layers.Dense(1, kernel_initializer="zeros")])
    model.compile(optimizer=keras.optimizers.SGD(0.0), loss="mse")
    return model


def fitted(dataset, epochs, is_built=False, **options):
    batches = Batches()
    silent(is_built).fit(dataset, epochs=epochs, callbacks=[batches], verbose=0, **options)
    return batches


@pytest.mark.parametrize("is_built", [True, False])
@pytest.mark.parametrize("shuffle", [True, False])
def test_epochs_follow_each_other_through_the_stream_and_lose_no_batch(is_built, shuffle):
    dataset = Dataset(counted(100), 4)
    batches = fitted(dataset, 3, is_built, shuffle=shuffle)
    assert batches.epochs == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    assert fitted(dataset, 1, is_built=True).epochs == [[12, 13, 14, 15]]


def test_without_steps_per_epoch_fit_says_how_long_an_epoch_is():
    dataset = Dataset(counted(100))
    batches = fitted(dataset, 2, shuffle=False, steps_per_epoch=3)
    assert batches.epochs == [[0, 1, 2], [3, 4, 5]]
    with pytest.raises(TypeError, match="no length"):
        len(dataset)


reads_ahead = pytest.mark.skipif(
    os.environ.get("KERAS_BACKEND") == "tensorflow", reason="TensorFlow reads ahead of such epochs"
)


@reads_ahead
@pytest.mark.parametrize("n", [None, 6])
@pytest.mark.parametrize("n_steps", [1, 2, 3])
@pytest.mark.parametrize("is_built", [True, False])
def test_epochs_that_fit_makes_shorter_follow_each_other_too(is_built, n_steps, n):
    epochs = fitted(Dataset(counted(100), n), 3, is_built, shuffle=False, steps_per_epoch=n_steps)
    assert epochs.epochs == [list(range(i, i + n_steps)) for i in range(0, 3 * n_steps, n_steps)]


@reads_ahead
def test_short_fits_of_one_model_follow_each_other_too():
    dataset, batches = Dataset(counted(100), 4), Batches()
    model = silent(is_built=True)
    for _ in range(3):
        model.fit(dataset, callbacks=[batches], steps_per_epoch=1, verbose=0)
    assert batches.epochs == [[0], [1], [2]]


def test_a_stream_that_ends_begins_again():
    streamer = pescador.Streamer(counted, 5)
    assert fitted(Dataset(streamer, 3), 3).epochs == [[0, 1, 2], [3, 4, 0], [1, 2, 3]]


def test_each_pass_is_another_epoch_of_seeded():
    rows = pescador.sources.Rows({"x": np.arange(8, dtype=np.float32)[:, None]}, order="shuffled")
    batches = pescador.Streamer(pescador.buffer_stream, rows, 1)
    run = pescador.Seeded(pescador.Streamer(pescador.keras_tuples, batches, "x", "x"), 0)
    epochs = fitted(Dataset(run.at(epoch=3), 8), 3).epochs
    for i, epoch in enumerate(epochs):
        expected = [int(x[0, 0]) for x, _ in run.at(epoch=3 + i)]
        assert epoch == expected
        assert sorted(epoch) == list(range(8))
    assert epochs[0] != epochs[1]
    same = Dataset(run, 4, restart=True)
    assert [float(x[0, 0]) for x, _ in same] == [float(x[0, 0]) for x, _ in run.iterate(4)]


def test_validation_gives_the_same_batches_each_time():
    validation = Dataset(pescador.Streamer(counted, 100, 50), 2, restart=True)
    batches = fitted(Dataset(counted(100), 2), 3, validation_data=validation)
    assert batches.validations == [[50, 51]] * 3


@pytest.mark.parametrize("n", [1, 2, 3])
def test_predictions_are_of_each_batch(n):
    ones = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, kernel_initializer="ones")])
    dataset = Dataset(((x,) for x, _ in counted(10)), n)
    for first in (0, n):
        expected = [i for i in range(first, first + n) for _ in range(2)]
        assert ones.predict(dataset, verbose=0)[:, 0].tolist() == expected


def test_a_model_of_several_inputs_takes_them_by_name():
    inputs = {name: keras.Input((1,), name=name) for name in ("a", "b")}
    model = keras.Model(inputs, keras.layers.Add()(list(inputs.values())))
    model.compile(loss="mse")
    items = (({"a": x, "b": 2 * x}, 3 * y) for x, y in counted(10))
    assert model.evaluate(Dataset(items, 5), verbose=0) == 0


def noise():
    while True:
        x = np.random.randint(1000, size=(2, 1)).astype(np.float32)
        yield x, x


def test_a_run_that_is_stopped_after_an_epoch_goes_on_as_if_it_had_not_been():
    mux = pescador.StochasticMux([pescador.Streamer(noise)] * 5, 2, rate=4)
    run = pescador.Seeded(mux, 0)
    unbroken = fitted(Dataset(run, 7), 4).epochs
    first = Dataset(run, 7)
    begun = fitted(first, 2).epochs
    second = Dataset(run, 7)
    second.load_state_dict(first.state_dict())
    resumed = fitted(second, 4, initial_epoch=2).epochs
    assert begun + resumed == unbroken


def test_the_state_of_a_later_pass_is_restored_in_it():
    rows = pescador.sources.Rows({"x": np.arange(8)}, order="shuffled")
    run = pescador.Seeded(pescador.Streamer(pescador.tuples, rows, "x"), 0)
    first, second = Dataset(run, 5), Dataset(run, 5)
    for _ in range(2):
        list(first)
    second.load_state_dict(first.state_dict())
    assert [list(second) for _ in range(3)] == [list(first) for _ in range(3)]


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("begins", [True, False])
def test_batches_that_keras_has_looked_at_come_again(n, begins):
    # As Keras does: two of them where it copies to a device ahead, which the CPU is not; and on
    # TensorFlow, before any epoch.
    dataset = Dataset(range(10), 4)
    if begins:
        dataset.on_epoch_begin()
    assert [dataset[i] for i in range(n)] == list(range(n))
    if begins:
        dataset.on_epoch_end()
    epochs = []
    for _ in range(2):
        dataset.on_epoch_begin()
        epochs.append(list(dataset))
        dataset.on_epoch_end()
    assert epochs == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_no_state_is_taken_between_a_look_at_a_batch_and_the_first_epoch():
    dataset = Dataset(counted(10), 2)
    dataset.on_epoch_begin()
    dataset[0]
    dataset.on_epoch_end()
    with pytest.raises(pescador.StateError, match="looked at a batch"):
        dataset.state_dict()


def test_the_state_of_something_else_is_refused():
    dataset = Dataset(counted(10), 2)
    with pytest.raises(pescador.ArgumentError, match=r"state=\{\}"):
        dataset.load_state_dict({})
    for broken in ({"pescador.keras": 2}, {"passes": -1}, {"passes": "1"}):
        with pytest.raises(pescador.StateError):
            dataset.load_state_dict({**Dataset([1], 1).state_dict(), **broken})


def test_a_stream_that_has_nothing_to_give_or_too_little_is_refused():
    with pytest.raises(pescador.DataError, match="it is empty"):
        Dataset([], 2)[0]
    generator = Dataset(counted(1), 2)
    generator[0]
    with pytest.raises(pescador.DataError, match="cannot begin again"):
        generator[1]
    short = Dataset(pescador.Streamer(counted, 2), 3, restart=True)
    with pytest.raises(pescador.DataError, match="after 2 batches"):
        list(short)
    assert short.state_dict() == Dataset([1], 1).state_dict()


@pytest.mark.parametrize(
    ("options", "name"),
    [({"steps_per_epoch": 0}, "steps_per_epoch=0"), ({"restart": 1}, "restart=1")],
)
def test_an_invalid_argument_is_named(options, name):
    with pytest.raises(pescador.ArgumentError, match=name):
        Dataset([1], **options)
