"""Frozen sequences: a change of any draw shows here, even where no reference release is installed.

``python tests/test_frozen.py`` writes them anew, and says which were the reference release's own.
Do that when a configuration is added. A sequence that is there must not change.
"""

import itertools
import json
import pathlib

import numpy as np
import pytest

import pescador

FILE = pathlib.Path(__file__).with_name("frozen.json")
N = 80


def letter(text):
    yield from itertools.repeat(text)


def few(text, n):
    yield from itertools.repeat(text, n)


def endless(module, text):
    return [module.Streamer(letter, c) for c in text]


def short(module, text):
    return [module.Streamer(few, c, i % 4) for i, c in enumerate(text)]


STOCHASTIC = {
    f"Stochastic {mode} {dist} {kind}": lambda module, seed, mode=mode, dist=dist, kind=kind: (
        module.StochasticMux(
            (short if kind == "short" else endless)(module, "abcdefghijkl"),
            5,
            3.5,
            weights=np.arange(1.0, 13.0) if kind == "weighted" else None,
            mode=mode,
            dist=dist,
            random_state=seed,
        )
    )
    for mode in ("with_replacement", "single_active", "exhaustive")
    for dist in ("binomial", "poisson", "constant")
    for kind in ("uniform", "weighted", "short")
}

OTHERS = {
    "Shuffled uniform": lambda module, seed: module.ShuffledMux(
        endless(module, "abcdef"), random_state=seed
    ),
    "Shuffled weighted": lambda module, seed: module.ShuffledMux(
        endless(module, "abcdef"), weights=[1, 2, 3, 4, 5, 0], random_state=seed
    ),
    "Shuffled short": lambda module, seed: module.ShuffledMux(
        short(module, "abcdefgh"), random_state=seed
    ),
    "Round robin permuted": lambda module, seed: module.RoundRobinMux(
        short(module, "abcdefgh"), "permuted_cycle", random_state=seed
    ),
    "Tree": lambda module, seed: module.StochasticMux(
        [
            module.ShuffledMux(endless(module, "abc"), random_state=seed),
            module.StochasticMux(endless(module, "defghi"), 2, 4, random_state=seed),
            module.ChainMux(short(module, "jklm"), "cycle"),
            module.RoundRobinMux(short(module, "nopq"), "permuted_cycle", random_state=seed),
        ],
        3,
        9,
        random_state=seed,
    ),
}

SEEDS = {
    "int": lambda: 20,
    "RandomState": lambda: np.random.RandomState(np.random.MT19937(20)),
    "Generator": lambda: np.random.default_rng(20),
    "BitGenerator": lambda: np.random.Philox(20),
    "SeedSequence": lambda: np.random.SeedSequence(20),
}

CONFIGURATIONS = {
    **{f"{name}, int": (make, SEEDS["int"]) for name, make in STOCHASTIC.items()},
    **{
        f"{name}, {kind}": (make, seed)
        for name, make in {
            **OTHERS,
            "Stochastic": STOCHASTIC["Stochastic with_replacement binomial weighted"],
        }.items()
        for kind, seed in SEEDS.items()
    },
    "global state": (OTHERS["Tree"], lambda: None),
}


def sequence(module, name):
    make, seed = CONFIGURATIONS[name]
    np.random.seed(20)
    return "".join(make(module, seed()).iterate(N))


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_frozen_sequence_has_not_changed(name):
    assert sequence(pescador, name) == json.loads(FILE.read_text())[name]


def test_numpy_integers_seed_as_python_integers_do():
    for kind in (np.int64, np.uint8, np.int32):
        mux = pescador.ShuffledMux(endless(pescador, "abcdef"), random_state=kind(20))
        frozen = json.loads(FILE.read_text())["Shuffled uniform, int"]
        assert "".join(mux.iterate(N)) == frozen


def write():
    import sys

    sys.path.insert(0, str(pathlib.Path(__file__).parent / "parity"))
    from peers import load

    peer = load("3.0.0")
    frozen, shared = {}, 0
    for name in CONFIGURATIONS:
        frozen[name] = sequence(pescador, name)
        if name.endswith(("int", "RandomState", "state")):
            assert sequence(peer, name) == frozen[name], name
            shared += 1
    FILE.write_text(json.dumps(frozen, indent=1) + "\n")
    print(f"{len(frozen)} sequences, {shared} of them the reference release's")


if __name__ == "__main__":
    write()
