"""Names, signatures, defaults and attributes are those of the reference release."""

import contextlib
import copy
import importlib
import inspect
import itertools
import pickle
import typing

import numpy as np
import pytest
from peers import load

import pescador

peer = load("3.0.0")

MODULES = ["core", "mux", "maps", "zmq_stream", "exceptions", "util"]


def own_names(module):
    """What a module defines itself."""
    return {
        name: value
        for name, value in vars(module).items()
        if getattr(value, "__module__", None) == module.__name__
    }


def shape(function):
    """The parameters of a function, with their kinds and defaults, without types."""
    return [
        (p.name, p.kind, repr(p.default) if p.default is not p.empty else None)
        for p in inspect.signature(function).parameters.values()
    ]


def pairs():
    for name in MODULES:
        theirs = getattr(peer, name)
        ours = importlib.import_module(f"pescador.{name}")
        for key, value in own_names(theirs).items():
            yield pytest.param(ours, key, value, id=f"{name}.{key}")


@pytest.mark.parametrize(("module", "name", "theirs"), list(pairs()))
def test_every_name_has_the_same_kind_and_signature(module, name, theirs):
    ours = getattr(module, name)
    assert ours.__module__ == module.__name__
    if inspect.isclass(theirs):
        assert [base.__name__ for base in theirs.__mro__ if base.__name__ != "object"] == [
            base.__name__ for base in ours.__mro__ if base.__name__ not in ("object", "Generic")
        ]
    if not (inspect.isclass(theirs) and issubclass(theirs, Exception)):
        own = shape(ours)
        reference = shape(theirs)
        # More keyword-only parameters are welcome.
        assert own[: len(reference)] == reference
        assert all(kind is inspect.Parameter.KEYWORD_ONLY for _, kind, _ in own[len(reference) :])


def members():
    for name in MODULES:
        for key, cls in own_names(getattr(peer, name)).items():
            if inspect.isclass(cls) and not issubclass(cls, Exception):
                for attribute, value in vars(cls).items():
                    if inspect.isfunction(value) or isinstance(value, property):
                        yield pytest.param(name, key, attribute, id=f"{key}.{attribute}")


@pytest.mark.parametrize(("module", "cls", "name"), list(members()))
def test_every_method_and_property_is_there(module, cls, name):
    theirs = vars(getattr(getattr(peer, module), cls))[name]
    ours = getattr(getattr(getattr(pescador, module), cls), name, None)
    if isinstance(theirs, property):
        assert isinstance(ours, property)
    else:
        assert callable(ours)
        reference = shape(theirs)
        own = shape(ours)
        assert own[: len(reference)] == reference
        # What we add has a default.
        assert all(default is not None for _, _, default in own[len(reference) :])
        assert inspect.isgeneratorfunction(theirs) == inspect.isgeneratorfunction(ours)


def instances(module):
    streamer = module.Streamer("abc")
    yield streamer
    yield module.StochasticMux([streamer, streamer], 1, 4)
    yield module.ShuffledMux([streamer])
    yield module.RoundRobinMux([streamer])
    yield module.ChainMux([streamer])
    yield module.ZMQStreamer(streamer)


@pytest.mark.parametrize("i", range(6))
def test_every_attribute_of_an_instance_is_there_with_the_same_value(i):
    theirs, ours = list(instances(peer))[i], list(instances(pescador))[i]
    for name, value in vars(theirs).items():
        assert hasattr(ours, name), name
        if isinstance(value, np.ndarray):
            assert np.array_equal(getattr(ours, name), value)
        elif name not in ("streamer", "streamers"):
            assert getattr(ours, name) == value or getattr(ours, name) is value


@pytest.mark.parametrize("i", range(1, 5))
def test_every_attribute_of_an_activated_mux_is_there(i):
    theirs, ours = list(instances(peer))[i], list(instances(pescador))[i]
    with theirs as their_active, ours as our_active:
        for name, value in vars(their_active).items():
            assert hasattr(our_active, name), name
            if isinstance(value, np.ndarray):
                assert getattr(our_active, name).dtype == value.dtype
                assert getattr(our_active, name).shape == value.shape


def is_reserved(name):
    """Whether nobody gives a name of their own this form, or Python and IPython have it."""
    return (
        (name.startswith("__") and name.endswith("__"))
        or name in ("_repr_pretty_", "_repr_html_")
        or hasattr(typing.Generic, name)
    )


@pytest.mark.parametrize("i", range(6))
def test_ours_have_no_other_names(i):
    theirs, ours = list(instances(peer))[i], list(instances(pescador))[i]
    with contextlib.ExitStack() as stack:
        found = {*dir(ours)}
        # There, not every subclass sets the attributes of a Streamer.
        names = {*dir(theirs), *dir(peer.Streamer("abc")), *own_parameters(ours), "open"}
        if i < 5:
            found.update(dir(stack.enter_context(ours)))
            names.update(dir(stack.enter_context(theirs)))
    assert {name for name in found if not is_reserved(name)} <= names


def own_parameters(instance):
    """The parameters that only ours has: each is an attribute, too."""
    parameters = inspect.signature(type(instance)).parameters.values()
    return {p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}


class Watching(type):
    """The class of classes that note what is looked up on them."""

    def __getattribute__(cls, name):
        ASKED_FOR.add(name)
        return super().__getattribute__(name)


ASKED_FOR = set()


def watched(cls):
    """A subclass that notes what is looked up on it and on its instances."""

    class Watched(cls, metaclass=Watching):
        def __getattribute__(self, name):
            ASKED_FOR.add(name)
            return super().__getattribute__(name)

    return Watched


def touch(streamer):
    """Use a streamer in all ways there are."""
    repr(streamer), str(streamer), streamer.active, streamer.is_activated_copy
    mapped = (
        streamer.iterate(),
        streamer.cycle(),
        streamer(cycle=True),
        pescador.tuples(streamer, 0),
        pescador.cache(streamer, 2),
        pescador.Streamer(pescador.tuples, streamer, 0).iterate(),
        copy.copy(streamer).iterate(),
        copy.deepcopy(streamer).iterate(),
    )
    for stream in mapped:
        list(itertools.islice(stream, 3))
        stream.close()
    for mux in list(instances(pescador))[1:5]:
        mux.streamers[:] = [streamer] * mux.n_streams
        list(mux(max_iter=9))
    with streamer as active:
        list(active.iterate(2))


@pytest.mark.parametrize("hooked", [False, True])
@pytest.mark.parametrize("i", range(5))
def test_no_private_name_that_is_not_a_hook_is_looked_up(i, hooked):
    theirs = list(instances(peer))[i]
    with theirs as active:
        hooks = {*dir(theirs), *dir(active)}
    ours = list(instances(pescador))[i]
    kind = type(ours)
    if hooked:

        class kind(type(ours)):
            def _activate(self):
                super()._activate()

    ours.__class__ = watched(kind)
    ASKED_FOR.clear()
    touch(ours)
    assert "iterate" in ASKED_FOR
    private = {n for n in ASKED_FOR if n.startswith("_") and not is_reserved(n)}
    assert private <= hooks


def test_a_subclass_may_have_any_private_method():
    class FileStreamer(pescador.Streamer):
        def _open(self, path):
            return [1, 2, 3]

    streamer = FileStreamer("ab")
    for mux in (pescador.RoundRobinMux([streamer] * 2), pescador.ChainMux([streamer] * 2)):
        assert sorted(mux) == ["a", "a", "b", "b"]
    assert list(pescador.Streamer(pescador.cache, streamer, 2))[:2] == ["a", "b"]


@pytest.mark.parametrize("name", ["ShuffledMux", "RoundRobinMux", "ChainMux"])
def test_pickles_of_the_reference_release_can_be_loaded(name):
    theirs = getattr(peer, name)([peer.Streamer("ab"), peer.Streamer("cd")], random_state=0)
    # Its module has another name in these tests, which protocol 0 writes in plain text.
    theirs_by_name = pickle.dumps(theirs, 0).replace(peer.__name__.encode(), b"pescador")
    ours = pickle.loads(theirs_by_name)
    assert type(ours) is getattr(pescador, name)
    assert list(ours.iterate(8)) == list(theirs.iterate(8))


@pytest.mark.parametrize("name", MODULES)
def test_what_a_module_imports_from_another_is_found_there_too(name):
    theirs = vars(getattr(peer, name)).items()
    package = f"{peer.__name__}."
    imported = {key for key, it in theirs if getattr(it, "__module__", "").startswith(package)}
    assert imported <= vars(importlib.import_module(f"pescador.{name}")).keys()


def test_everything_that_the_package_exports_is_exported():
    public = {"streamable"}
    for name in ("core", "exceptions", "maps", "mux", "zmq_stream"):
        module = getattr(peer, name)
        public.update(getattr(module, "__all__", own_names(module)))
    assert public <= set(pescador.__all__)
    assert {"Mux", "__version__"} <= set(pescador.__all__)


def test_streamable_keeps_arguments_as_the_reference_does():
    def source(n, m=3, *more, k=2, **rest):
        yield n

    for args, kwargs in [((5,), {}), ((5, 6, 7), {"k": 1}), ((), {"n": 1, "z": 2})]:
        theirs = peer.core.streamable(source)(*args, **kwargs)
        ours = pescador.streamable(source)(*args, **kwargs)
        assert (ours.args, ours.kwargs) == (theirs.args, theirs.kwargs)
    assert inspect.signature(pescador.streamable(source)) == inspect.signature(source)
