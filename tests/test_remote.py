"""RemoteStreamer and Server: the same items in the same order, whatever happens in between."""

import contextlib
import gc
import json
import multiprocessing
import os
import pathlib
import pickle
import platform
import re
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time

import numpy as np
import psutil
import pytest
import zmq
from hypothesis import given
from hypothesis import strategies as st
from scripts import run

import pescador
from effort import TIMES, examples
from items import ITEM, made, same
from pescador import ArgumentError, DataError, PescadorError, RemoteStreamer, Server, Streamer
from pescador._channel import schema
from pescador.remote import consumer, protocol, values
from streams import Failure, data, draws, failing, forever

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="pipes that zmq cannot poll")

HERE = "tcp://127.0.0.1:*"
SERVER, CLIENT, STRANGER = (zmq.curve_keypair() for _ in range(3))
LOCK = {"key": SERVER, "clients": [CLIENT[0]]}
KEY = {"server_key": SERVER[0], "key": CLIENT}
CLEAR = {"insecure": True}


@contextlib.contextmanager
def served(streamer, clear=True, *, address=HERE, timeout=20, lock=None, **options):
    """A function that makes a RemoteStreamer of what a server of this process serves."""
    lock = (CLEAR if clear else LOCK) if lock is None else lock
    with Server(streamer, address, timeout=timeout, **lock, **options) as server:

        def remote(**options):
            given = {**(CLEAR if clear else KEY), "timeout": timeout, **options}
            return RemoteStreamer(server.address, **given)

        remote.server = server
        yield remote


def once_more(*values):
    """Parameters of ``make test-long`` alone: each needs a process or two."""
    return values if TIMES > 1 else ()


def wait_until(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def numbers(n=10**9, size=3):
    for i in range(n):
        yield {"x": np.full(size, i)}


def first_of(items):
    return [int(item["x"].flat[0]) for item in items]


# ------------------------------------------------------------------------------------- items

PLAIN = st.recursive(
    st.one_of(
        *(st.none(), st.booleans(), st.integers(), st.text(max_size=5), st.binary(max_size=5)),
        *(st.floats(allow_nan=False), st.complex_numbers(allow_nan=False)),
    ),
    lambda inner: st.one_of(
        *(st.lists(inner, max_size=3), st.lists(inner, max_size=3).map(tuple)),
        st.dictionaries(st.one_of(st.text(max_size=3), st.tuples(st.integers())), inner),
    ),
    max_leaves=6,
)


@examples(25)
@given(PLAIN)
def test_a_plain_value_is_read_as_it_was_written(value):
    there = values.loads(values.dumps(value))
    assert repr(there) == repr(value)
    assert values.value_of(dict(values.as_arrays(value, False)), False) == value


@examples(20)
@given(ITEM, st.integers(1, 3))
def test_records_of_any_layout_are_read_as_they_were_written(item, n):
    # As a channel gives them: of contiguous memory.
    sent = schema.decode([bytes(frame) for frame in schema.encode(made(item))])
    batch = values.Batch()
    assert batch.takes(sent)
    n = 1 + sum(batch.takes(sent) for _ in range(n - 1))
    code, *frames = batch.frames()
    received = list(values.Schemas().items(n, code, [bytearray(frame) for frame in frames]))
    assert len(received) == n
    for one in received:
        same(one, sent)
        assert all(array.flags.writeable and array.flags.aligned for array in one.values())


@examples(25)
@given(st.binary(max_size=60), st.integers(0, 60), st.binary(max_size=4))
def test_damaged_values_are_errors(noise, at, some):
    written = values.dumps({"a": np.arange(3), "b": [1, "x", b"y"]})
    for damaged in (noise, written[:at], written[:at] + some + written[at + len(some) :]):
        with contextlib.suppress(DataError, *consumer._DAMAGED):
            values.loads(damaged)


@examples(25)
@given(
    st.recursive(
        st.one_of(
            st.none(), st.integers(), st.sampled_from(["f8", "i4,O", "(2", "x", "C", "F", "V0"])
        ),
        lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(), inner)),
    ),
    st.integers(0, 3),
    st.lists(st.binary(max_size=9), max_size=2),
)
def test_damaged_messages_are_errors(schema, n, frames):
    for code in (json.dumps(schema), json.dumps([["x", "f8", [schema], "C"]])):
        with contextlib.suppress(DataError, *consumer._DAMAGED):
            read = list(values.Schemas().items(n, code.encode(), list(map(bytearray, frames))))
            assert all(a.nbytes <= 9 for item in read for a in item.values())


def test_a_dtype_of_objects_is_never_read():
    with pytest.raises(DataError, match="objects"):
        schema.Column(["|O", [2], "C"])


ITEMS = [
    {"x": np.arange(3), "y": np.array(2.5)},
    {},
    {"x": np.asfortranarray(np.ones((2, 3))), 5: np.zeros((0, 2), "M8[s]")},
    (np.arange(2), [np.float32(1.5), {"a": None}], "text", b"bytes", 1 + 2j),
    {"x": 3, "y": np.arange(2)},
    17,
    *({"x": np.full(2, i)} for i in range(100)),
    {"x": np.zeros(2**20, np.uint8)},
]


@pytest.mark.parametrize("clear", [True, False])
def test_items_arrive_as_they_were_sent(clear):
    with served(Streamer(ITEMS), clear) as remote:
        assert repr(list(remote())) == repr(ITEMS)
        assert repr(list(remote()(max_iter=3))) == repr(ITEMS[:3])
        stream = remote()
        assert len(list(stream.cycle(max_iter=2 * len(ITEMS) + 1))) == 2 * len(ITEMS) + 1
        assert stream.active == 0


def test_objects_are_pickled_with_keys_only():
    with served(Streamer([Failure("kept")]), clear=False) as remote:
        assert [str(item) for item in remote()] == ["kept"]
    what = pytest.raises(PescadorError, match=r"DataError: .* holds, a Failure")
    with served(Streamer([Failure("kept")])) as remote, what:
        list(remote())


ODD = [
    {"x": np.array([None, "a"], object)},
    {np.int64(3): np.zeros(2)},
    {frozenset([1]): np.zeros(2)},
    huge := [1 << 20_000],
    *({key: np.zeros(2, np.uint8)} for key in (values.VALUE, values.PICKLED, values.STATE_KEY)),
]


def test_items_that_no_channel_takes_as_they_are_are_pickled_or_refused():
    itself = []
    itself.append(itself)
    with served(Streamer(ODD), clear=False) as remote:
        for ours, theirs in zip(remote(), ODD, strict=True):
            assert repr(ours) == repr(theirs) if theirs is not huge else ours == huge
    for item in (ODD[0], *ODD[2:4], itself):
        with pytest.raises(DataError):
            values.as_arrays(item, False)
    assert values.value_of(dict(values.as_arrays(itself, True)), True)[0] is not None
    for item in (ODD[1], *ODD[4:]):
        same(values.value_of(dict(values.as_arrays(item, False)), False), item)


@pytest.mark.parametrize("n", [-1, 0, 10**12])
def test_a_short_message_does_not_make_many_records(n):
    for code, frames in ((b"[]", []), (b'[["x", "f8", [0], "C"]]', [b""])):
        with pytest.raises(DataError, match="records"):
            values.Schemas().items(n, code, frames)


def test_a_head_is_read_up_to_some_length():
    with pytest.raises(ValueError, match="a head of"):
        protocol.read_question(b"open\n" + b"[" + b"[]," * 2**15 + b"[]]\nstate")


def test_a_pickle_in_clear_text_is_not_read():
    with pytest.raises(DataError, match="clear text"):
        values.value_of(dict(values.as_arrays(Failure(), True)), False)


def test_items_are_those_of_a_local_stream_in_trees_and_maps():
    local = [Streamer(draws, 10) for _ in range(3)]
    with contextlib.ExitStack() as stack:
        remotes = [stack.enter_context(served(streamer))() for streamer in local]

        def batches(streams):
            mux = pescador.StochasticMux(streams, 2, 3)
            tree = pescador.Streamer(pescador.buffer_stream, mux, 4)
            return list(pescador.Seeded(tree, 3)(max_iter=5))

        for ours, theirs in zip(batches(remotes), batches(local), strict=True):
            same(ours, theirs)


def test_each_consumer_has_a_stream_of_its_own():
    with served(Streamer(numbers)) as remote:
        one, two = iter(remote()), iter(remote())
        assert first_of([next(one), next(one), next(two), next(one)]) == [0, 1, 0, 2]
        assert remote.server.consumers == 2
        one.close()
        two.close()
        wait_until(lambda: remote.server.consumers == 0)


def test_two_consumers_draw_otherwise_and_under_one_seed_alike():
    drawing = Streamer(draws, 2)
    for streamer, alike in (drawing, False), (pescador.Seeded(drawing, 1), True):
        with served(streamer) as remote:
            first, second = next(iter(remote())), next(iter(remote()))
            assert np.array_equal(first["numpy"], second["numpy"]) == alike


def test_workers_of_another_streamer_leave_it_to_the_consumer():
    with served(Streamer(numbers, 3)) as remote:
        parallel = pescador.ParallelStreamer(pescador.ChainMux([remote()]), 1)
        assert "its items come from a server" in str(parallel)
        assert first_of(parallel) == [0, 1, 2]


def test_a_consumer_reads_the_part_that_it_asks_for():
    seeded = pescador.Seeded(Streamer(draws, 3), 5)
    with served(pescador.ParallelStreamer(seeded, 0)) as wrapped, served(seeded) as remote:
        for make in (wrapped, remote):
            for rank in range(2):
                ours, theirs = make().at(rank=rank, epoch=1), seeded.at(rank=rank, epoch=1)
                for a, b in zip(ours, theirs, strict=True):
                    same(a, b)
    with (
        served(Streamer(numbers, 1)) as remote,
        pytest.raises(PescadorError, match=r"rank=1: .*parts"),
    ):
        next(iter(remote(rank=1)))


def test_the_worker_waits_for_a_consumer_that_does_not_read():
    made = multiprocessing.Value("l", 0)

    def source():
        while True:
            made.value += 1
            yield {"x": np.zeros(100_000, np.uint8)}

    with served(Streamer(source)) as remote:
        stream = iter(remote(max_bytes=2**20))
        for _ in range(30):
            next(stream)
            seen = made.value
            wait_until(lambda seen=seen: made.value in (seen, seen := made.value))
        # Twice: some wait in the worker's memory, some for the consumer.
        assert made.value <= 30 + 2**20 // 100_000 + 3
        stream.close()


# ------------------------------------------------------------------------------------- errors


def looking_up():
    yield from numbers(1)
    raise KeyError("of the stream")


def test_an_error_arrives_as_what_it_was():
    with served(Streamer(looking_up), clear=False) as remote:
        stream = iter(remote())
        next(stream)
        with pytest.raises(KeyError, match="of the stream"):
            next(stream)


def test_an_error_arrives_after_the_items_before_it_with_its_traceback():
    with served(Streamer(failing, 3), clear=False) as remote:
        stream = iter(remote())
        assert [next(stream) for _ in range(3)] == [0, 1, 2]
        with pytest.raises(Failure) as caught:
            next(stream)
        assert "raise Failure(n)" in str(caught.value.__cause__)
    with served(Streamer(failing, 0)) as remote:
        with pytest.raises(PescadorError, match=r"raised streams\.Failure: 0") as caught:
            list(remote())
        assert "raise Failure(n)" in str(caught.value.__cause__)


def killing():
    yield from numbers(2)
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_worker_is_named_and_the_server_serves_on():
    with served(Streamer(killing)) as remote:
        for _ in range(2):
            stream = iter(remote())
            assert first_of([next(stream), next(stream)]) == [0, 1]
            with pytest.raises(PescadorError, match="SIGKILL"):
                next(stream)


@pytest.mark.parametrize(
    ("lock", "key", "what"),
    [
        (LOCK, {**KEY, "key": STRANGER}, "not among its `clients`"),
        (LOCK, {**KEY, "server_key": STRANGER[0]}, "key is not `server_key`"),
        (LOCK, CLEAR, "server has keys, and takes no clear text"),
        (CLEAR, KEY, "started with insecure=True"),
    ],
)
def test_keys_that_do_not_fit_are_named(lock, key, what):
    with served(Streamer(numbers), lock=lock) as remote:
        with pytest.raises(PescadorError, match=what):
            next(iter(RemoteStreamer(remote.server.address, **key)))
        assert remote.server.consumers == 0


def test_a_server_that_is_not_there_is_an_error():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = f"tcp://127.0.0.1:{listening.getsockname()[1]}"
        # It takes connections, and says nothing.
        with pytest.raises(PescadorError, match=r"timeout=0\.5"):
            next(iter(RemoteStreamer(address, insecure=True, timeout=0.5)))
    with pytest.raises(PescadorError, match=r"could not be made.*timeout=0\.3"):
        next(iter(RemoteStreamer(address, insecure=True, timeout=0.3)))
    with served(Streamer(numbers)) as remote, pytest.raises(PescadorError, match="cannot listen"):
        Server(Streamer(numbers), remote.server.address, insecure=True).__enter__()


def test_a_server_of_something_else_is_an_error():
    with zmq.Context() as context, context.socket(zmq.ROUTER) as other:
        port = other.bind_to_random_port("tcp://127.0.0.1")
        remote = RemoteStreamer(f"tcp://127.0.0.1:{port}", insecure=True, timeout=0.5)
        with pytest.raises(PescadorError, match="none of pescador"):
            next(iter(remote))


def test_another_version_of_the_protocol_is_refused_by_both_numbers():
    with served(Streamer(numbers)) as remote, zmq.Context() as context:
        with context.socket(zmq.DEALER) as consumer:
            consumer.connect(remote.server.address)
            consumer.send(protocol.question(protocol.OPEN, "me", protocol=99))
            word, head = consumer.recv_multipart()
        assert word == protocol.REFUSED
        assert b"speaks protocol 1 " in head
        assert b"consumer protocol 99" in head
        assert remote.server.consumers == 0


def test_consumers_above_the_limit_are_refused():
    with served(Streamer(numbers), max_consumers=1) as remote:
        one = iter(remote())
        next(one)
        with pytest.raises(PescadorError, match="max_consumers=1"):
            next(iter(remote()))
        one.close()


def test_one_client_does_not_take_the_streams_of_all():
    lock = {"key": SERVER, "clients": [CLIENT[0], STRANGER[0]]}
    with served(Streamer(numbers), clear=False, lock=lock, max_per_client=1) as remote:
        one = iter(remote())
        next(one)
        with pytest.raises(PescadorError, match="max_per_client=1"):
            next(iter(remote()))
        other = iter(remote(key=STRANGER))
        assert first_of([next(other)]) == [0]
        one.close()
        other.close()


def never_ending():
    yield from numbers(1)
    time.sleep(1000)


def test_a_consumer_that_opens_and_closes_has_few_workers_at_a_time():
    with served(Streamer(never_ending), max_consumers=2) as remote:
        for _ in range(8):
            stream = iter(remote())
            next(stream)
            stream.close()
            wait_until(lambda: remote.server.consumers == 0)
            # Each of them would have a few seconds.
            assert len(remote.server._loop.ending) <= 3


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda: Server("ab", HERE, insecure=True, max_per_client=2), "max_per_client needs"),
        (lambda: Server("ab", HERE, **LOCK, max_per_client=0), "max_per_client=0"),
        (lambda: Server("ab", HERE), "insecure=True"),
        (lambda: Server("ab", HERE, key=SERVER), "clients"),
        (lambda: Server("ab", HERE, clients=[CLIENT[0]], insecure=True), "key"),
        (lambda: Server("ab", HERE, insecure=True, **LOCK), "pass either"),
        (lambda: Server("ab", HERE, key=SERVER, clients=[]), "nobody"),
        (lambda: Server("ab", HERE, key=SERVER, clients=[b"short"]), "40 characters"),
        (lambda: Server("ab", HERE, key=(SERVER[0], CLIENT[1]), clients=[CLIENT[0]]), "not that"),
        (lambda: Server("ab", "127.0.0.1:5", insecure=True), "tcp://host:port"),
        (lambda: Server("ab", HERE, insecure=True, timeout=0), "timeout=0"),
        (lambda: Server("ab", "tcp://127.0.0.1:99999", insecure=True), "65536"),
        (lambda: Server("ab", "tcp://127.0.0.1", insecure=True), "tcp://host:port"),
        (lambda: Server("ab", HERE, insecure="no"), "insecure='no'"),
        (lambda: Server("ab", HERE, key=SERVER, clients="missing"), "clients='missing'"),
        (lambda: RemoteStreamer(HERE, insecure="no"), "insecure='no'"),
        (lambda: RemoteStreamer(HERE), "insecure=True"),
        (lambda: RemoteStreamer(HERE, key=CLIENT, insecure=True), "server_key"),
        (lambda: RemoteStreamer(HERE, server_key=SERVER[0]), "without key"),
        (lambda: RemoteStreamer(HERE, server_key="missing", key=CLIENT), "no file of a key"),
        (lambda: RemoteStreamer(HERE, insecure=True, rank=-1), "rank=-1"),
    ],
)
def test_arguments_that_will_not_do_are_refused(make, what):
    with pytest.raises(ArgumentError, match=what):
        make()


def certificate(folder, name):
    public, secret = zmq.auth.create_certificates(folder, name)
    os.chmod(secret, 0o600)
    return public, secret


def test_keys_may_be_files_and_are_not_shown(tmp_path):
    (tmp_path / "clients").mkdir()
    for folder, name in (tmp_path, "server"), (tmp_path / "clients", "trainer"):
        certificate(folder, name)
    with Server(
        *(Streamer(numbers, 2), HERE),
        key=tmp_path / "server.key_secret",
        clients=tmp_path / "clients",
    ) as server:
        remote = RemoteStreamer(
            server.address,
            server_key=tmp_path / "server.key",
            key=tmp_path / "clients/trainer.key_secret",
        )
        assert first_of(pickle.loads(pickle.dumps(remote))) == [0, 1]
    with pytest.raises(ArgumentError, match="key_secret"):
        RemoteStreamer(HERE, server_key=SERVER[0], key=tmp_path / "server.key")
    remote = RemoteStreamer(HERE, **KEY)
    for shown in (repr(remote), str(remote), remote._repr_html_()):
        assert CLIENT[1].decode() not in shown


def test_a_secret_key_that_is_passed_as_a_str_is_not_shown():
    secret = SERVER[1].decode()
    for key in (secret, (SERVER[0].decode(), secret)):
        with pytest.raises(ArgumentError, match="bytes") as caught:
            Server("ab", HERE, key=key, clients=[CLIENT[0]])
        assert secret not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "mode", "what"),
    [
        ("server.key_secret", 0o644, r"chmod go= "),
        ("server.key_secret", 0o602, r"chmod go= "),
        ("clients/trainer.key", 0o666, r"chmod go-w"),
        ("clients", 0o777, r"chmod go-w"),
    ],
)
def test_keys_that_everybody_may_read_or_write_are_warned_of(tmp_path, name, mode, what):
    (tmp_path / "clients").mkdir()
    _, secret = certificate(tmp_path, "server")
    certificate(tmp_path / "clients", "trainer")
    lock = {"key": secret, "clients": tmp_path / "clients"}
    for open_one in tmp_path.rglob("*"):
        os.chmod(open_one, 0o755 if open_one.is_dir() else 0o644)
    os.chmod(secret, 0o600)
    Server("ab", HERE, **lock)
    os.chmod(tmp_path / name, mode)
    with pytest.warns(pescador.PescadorWarning, match=what):
        Server("ab", HERE, **lock)


def test_a_host_that_nobody_knows_is_named():
    remote = RemoteStreamer("tcp://nowhere.invalid:5", insecure=True, timeout=0.1)
    with pytest.raises(PescadorError, match=r"'nowhere\.invalid' cannot be resolved"):
        next(iter(remote))


def test_waiting_for_a_server_that_does_not_listen_is_an_error():
    with pytest.raises(PescadorError, match="does not listen"):
        Server("ab", HERE, insecure=True).wait()


# ------------------------------------------------------------------------------------- states


def seeded_mux():
    streams = [Streamer(draws, 20) for _ in range(8)]
    return pescador.Seeded(pescador.StochasticMux(streams, 3, 4), 11)


def batches_of_rows():
    source = pescador.sources.Rows({"x": np.arange(60).reshape(30, 2)}, order="random")
    mux = pescador.ShuffledMux([source] * 3, random_state=2)
    return Streamer(pescador.buffer_stream, mux, 4)


@pytest.mark.parametrize(
    ("make", "clear"), [(seeded_mux, True), (seeded_mux, False), (batches_of_rows, False)]
)
def test_a_state_resumes_against_a_server_that_was_started_again(make, clear):
    with served(make(), clear) as remote, remote().open(max_iter=40) as stream:
        before = [next(stream) for _ in range(13)]
        state = pickle.loads(pickle.dumps(stream.state_dict()))
        expected = before + list(stream)
    with served(make(), clear) as remote:
        after = list(remote().open(state=state))
        with remote().open(state=state) as stream:
            again = [next(stream) for _ in range(5)]
            state = stream.state_dict()
        again += remote().open(state=state)
    for found in (before + after, before + again):
        for a, b in zip(found, expected, strict=True):
            same(a, b)


def test_a_state_goes_on_for_another_client():
    lock = {"key": SERVER, "clients": [CLIENT[0], STRANGER[0]]}
    with served(seeded_mux(), clear=False, lock=lock) as remote:
        with remote().open() as stream:
            next(stream)
            state = stream.state_dict()
            expected = next(stream)
        with remote(key=STRANGER).open(state=state) as stream:
            same(next(stream), expected)


def test_a_state_that_the_server_has_not_written_is_refused():
    with served(seeded_mux(), clear=False) as remote:
        with remote().open() as stream:
            next(stream)
            state = stream.state_dict()
        sealed = bytearray(state["tree"]["server"])
        sealed[-1] ^= 1
        state["tree"]["server"] = bytes(sealed)
        with pytest.raises(PescadorError, match="not taken of a server with this key"):
            next(remote().open(state=state))


def test_a_state_of_another_streamer_is_refused():
    with served(seeded_mux()) as remote, remote().open() as stream:
        next(stream)
        state = stream.state_dict()
    with served(Streamer(numbers)) as remote, pytest.raises(PescadorError, match="does not fit"):
        next(remote().open(state=state))


def test_a_stream_without_an_exact_state_says_so():
    with served(Streamer(draws, 9)) as remote, remote().open() as stream:
        next(stream)
        next(stream)
        with pytest.raises(pescador.StateError, match="at its server"):
            stream.state_dict()


@pytest.mark.parametrize("is_remote", [True, False])
def test_a_stream_without_an_exact_state_gives_no_more_items_than_were_left(is_remote):
    with served(Streamer(draws, 9)) as remote:
        streamer = remote() if is_remote else pescador.ZMQStreamer(Streamer(draws, 9))
        with streamer.open(max_iter=8) as stream:
            for _ in range(3):
                next(stream)
            state = stream.state_dict(allow_inexact=True)
        assert len(list(streamer.open(state=state))) == 5


class HookedMux(pescador.ShuffledMux):
    """It overrides a hook: its streams are iterated on, and no engine opens them."""

    def _next_sample_index(self):
        return super()._next_sample_index()


def test_streams_of_a_mux_with_hooks_run_under_seeds_and_have_states():
    with served(Streamer(draws, 20)) as remote:
        expected = list(pescador.Seeded(pescador.ShuffledMux([remote(), remote()]), 11)(12))
        hooked = pescador.Seeded(HookedMux([remote(), remote()]), 11)
        with hooked.open(max_iter=12) as stream:
            items = [next(stream) for _ in range(5)]
            state = stream.state_dict()
        items += hooked.open(state=state)
    for a, b in zip(items, expected, strict=True):
        same(a, b)


# ------------------------------------------------------------------------------------- cuts


class Link:
    """A port of this machine that leads to another one, and can be cut."""

    def __init__(self, address):
        self.there = ("127.0.0.1", int(address.rpartition(":")[2]))
        self.port = 0
        self.ends = []
        self.restore()

    def restore(self):
        self.listening = socket.create_server(("127.0.0.1", self.port))
        self.port = self.listening.getsockname()[1]
        threading.Thread(target=self.accept, args=(self.listening,), daemon=True).start()

    def accept(self, listening):
        with contextlib.suppress(OSError):
            while True:
                near, _ = listening.accept()
                try:
                    far = socket.create_connection(self.there)
                except OSError:
                    near.close()
                    continue
                self.ends += [near, far]
                for end in (near, far):
                    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                for ends in ((near, far), (far, near)):
                    threading.Thread(target=self.forward, args=ends, daemon=True).start()

    @staticmethod
    def forward(source, target):
        with contextlib.suppress(OSError):
            while some := source.recv(2**16):
                target.sendall(some)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def cut(self):
        for end in (self.listening, *self.ends):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
        self.ends.clear()

    @property
    def address(self):
        return f"tcp://127.0.0.1:{self.port}"


@pytest.mark.parametrize("clear", [True, False])
def test_after_a_cut_the_stream_goes_on_at_its_item(clear):
    with served(Streamer(numbers, 3000, 1000), clear) as remote:
        link = Link(remote.server.address)
        stream = iter(RemoteStreamer(link.address, **(CLEAR if clear else KEY)))
        received = []
        for at in (1, 700, 701, 2500):
            received += [next(stream) for _ in range(at - len(received))]
            link.cut()
            link.restore()
        received += stream
        link.cut()
        assert first_of(received) == list(range(3000))


def test_a_link_that_stays_cut_is_an_error_within_the_timeout():
    with served(Streamer(numbers)) as remote:
        link = Link(remote.server.address)
        stream = iter(RemoteStreamer(link.address, insecure=True, timeout=0.5))
        next(stream)
        link.cut()
        with pytest.raises(PescadorError, match=r"was lost, for timeout=0\.5 seconds"):
            for _ in stream:
                pass


def test_a_stream_that_the_server_has_closed_meanwhile_goes_on_from_its_state():
    with served(seeded_mux(), timeout=0.3) as remote:
        link = Link(remote.server.address)
        stream = iter(RemoteStreamer(link.address, insecure=True, max_bytes=2**11))
        received = [next(stream) for _ in range(30)]
        link.cut()
        wait_until(lambda: remote.server.consumers == 0)
        link.restore()
        received += [next(stream) for _ in range(30)]
        stream.close()
        link.cut()
    for a, b in zip(received, seeded_mux()(max_iter=60), strict=True):
        same(a, b)


SERVING = """
    def numbers(n):
        for i in range(n):
            yield {"x": np.full(1000, i)}
    def sleeping():
        while True:
            yield {"x": np.array(os.getpid())}
            time.sleep(0.01)
    made = {"numbers": (numbers, 10**9), "sleeping": (sleeping,)}[sys.argv[1]]
    pescador.serve(pescador.Streamer(*made), sys.argv[2], insecure=True, timeout=1)
"""


def free_address():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return f"tcp://127.0.0.1:{listening.getsockname()[1]}"


@contextlib.contextmanager
def serving(what, address):
    """A server in a process of its own."""
    body = "import os, sys, time, numpy as np, pescador\n" + textwrap.dedent(SERVING)
    process = subprocess.Popen([sys.executable, "-c", body, what, address])
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def reading(address, **options):
    """An iteration, as soon as its server is there."""
    stream = iter(RemoteStreamer(address, insecure=True, **options))
    return stream, next(stream)


def test_a_server_that_is_killed_and_started_again_goes_on_at_the_item():
    address = free_address()
    with serving("numbers", address) as process:
        stream, item = reading(address, max_bytes=2**16)
        received = [item, *(next(stream) for _ in range(99))]
        workers = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        process.wait()
        psutil.wait_procs(workers, timeout=10)
        assert not any(worker.is_running() for worker in workers)
    with serving("numbers", address):
        received += [next(stream) for _ in range(900)]
        stream.close()
    assert first_of(received) == list(range(1000))


@pytest.mark.parametrize("end", [signal.SIGSTOP, *once_more(signal.SIGKILL)])
def test_a_server_that_is_killed_or_suspended_is_an_error(end):
    address = free_address()
    with serving("sleeping", address) as process:
        remote = RemoteStreamer(address, insecure=True)
        stream = iter(remote)
        next(stream)
        remote.timeout = 0.5
        process.send_signal(end)
        with pytest.raises(PescadorError, match=r"timeout=0\.5"):
            for _ in stream:
                pass


CONSUMING = """
    stream = iter(pescador.RemoteStreamer(sys.argv[1], insecure=True))
    next(stream)
    print("reading", flush=True)
    for item in stream:
        time.sleep(0.01)
"""


@pytest.mark.parametrize("end", [signal.SIGINT, *once_more(signal.SIGKILL, signal.SIGSTOP)])
def test_the_stream_of_a_consumer_that_is_gone_is_closed(end):
    body = "import os, sys, time, numpy as np, pescador\n" + textwrap.dedent(CONSUMING)
    with served(Streamer(numbers), timeout=0.4) as remote:
        command = [sys.executable, "-c", body, remote.server.address]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            assert process.stdout.readline() == b"reading\n"
            assert multiprocessing.active_children()
            process.send_signal(end)
            wait_until(lambda: remote.server.consumers == 0)
            wait_until(lambda: not multiprocessing.active_children())
            if end == signal.SIGINT:
                assert b"KeyboardInterrupt" in process.communicate()[1]
            process.kill()


def test_ctrl_c_ends_a_server_and_leaves_nothing():
    address = free_address()
    with serving("sleeping", address) as process:
        stream, item = reading(address)
        process.send_signal(signal.SIGINT)
        assert process.wait(20) != 0
        assert not psutil.pid_exists(int(item["x"]))
        stream.close()


INTERRUPTED = """
    import multiprocessing, threading
    pescador.remote.server._GRACE = 0.5
    def sleeping():
        yield 1
        time.sleep(1000)
    source = pescador.Streamer(sleeping)
    try:
        with pescador.Server(source, "tcp://127.0.0.1:*", insecure=True) as server:
            stream = pescador.RemoteStreamer(server.address, insecure=True).iterate()
            next(stream)
            threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
            server.wait()
    except KeyboardInterrupt:
        print(len(multiprocessing.active_children()))
"""


def test_ctrl_c_waits_for_the_workers_to_end():
    done = run(INTERRUPTED)
    assert (done.stdout, done.stderr) == ("0\n", "")


def test_nothing_is_left_behind():
    def left():
        gc.collect()
        process = psutil.Process()
        return process.num_fds(), process.num_threads(), threading.active_count()

    def once(clear):
        with served(Streamer(numbers, 50), clear) as remote:
            list(remote())
            next(iter(remote()))
            with remote().open() as stream:
                next(stream)
            with pytest.raises(PescadorError):
                next(iter(RemoteStreamer(remote.server.address, **(KEY if clear else CLEAR))))

    once(True)
    before = left()
    for clear in (True, False):
        once(clear)
    wait_until(lambda: left() <= before)


SCRIPT = """
    import threading
    offset = 5
    def numbers(n):
        for i in range(n):
            yield {"x": np.array(i + offset)}
    source = pescador.Streamer(numbers, 3)
    options = {"start_method": sys.argv[1], "insecure": True}
    with pescador.Server(source, "tcp://127.0.0.1:*", **options) as server:
        remote = pescador.RemoteStreamer(server.address, insecure=True)
        print(*[int(item["x"]) for item in remote])
        stream = remote.iterate()
        next(stream)
        child = os.fork()
        if not child:
            try:
                next(stream)
            except pescador.PescadorError as error:
                print("forked:", error, flush=True)
            # As a process ends that was forked: nothing of its parent's is closed.
            stream.close()
            server.__exit__(None, None, None)
            os._exit(0)
        os.waitpid(child, 0)
        print(*[int(item["x"]) for item in stream])
        print(len(threading.enumerate()))
    print(len(threading.enumerate()))
"""


@pytest.mark.parametrize("method", ["forkserver", *once_more("fork")])
def test_a_script_needs_no_guard_and_a_forked_process_takes_nothing(method):
    done = run(SCRIPT, method)
    lines = done.stdout.split("\n")
    assert lines[0] == "5 6 7", done.stderr
    assert lines[1].startswith("forked: a stream from a worker or a server belongs to the process")
    assert lines[2:5] == ["6 7", "2", "1"], done.stderr


WAITING = """
    import threading
    with pescador.Server("abc", "tcp://127.0.0.1:*", insecure=True) as server:
        remote = pescador.RemoteStreamer(server.address, insecure=True)
        def read():
            time.sleep(0.3)
            print(*remote, flush=True)
        threading.Thread(target=read, daemon=True).start()
        input()
"""


def test_a_server_may_wait_for_input():
    body = "import time, pescador\n" + textwrap.dedent(WAITING)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", body], **pipes) as process:
        killing = threading.Timer(20, process.kill)
        killing.start()
        assert process.stdout.readline() == "a b c\n"
        process.communicate("\n")
        killing.cancel()
        assert process.returncode == 0


FAULTS = """
    import resource
    def samples():
        x = np.ones(2**20, np.uint8)
        while True:
            yield {"x": x}
    source = pescador.Streamer(samples)
    with pescador.Server(source, "tcp://127.0.0.1:*", insecure=True) as server:
        stream = pescador.RemoteStreamer(server.address, insecure=True).iterate()
        for n in (100, 300):
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            for _ in range(n):
                next(stream)
        print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / n)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators know other ways")
def test_large_items_come_in_memory_that_served_before():
    # One has 256 pages at each end.
    done = run(FAULTS)
    assert float(done.stdout) < 30, done.stderr


def test_the_two_scripts_of_the_how_to_run_as_they_stand(tmp_path):
    page = (pathlib.Path(__file__).parents[1] / "docs/how-to/remote.rst").read_text()
    texts = re.findall(r"^\.\. code-block:: text\n\n((?:   .*\n|\n)*)", page, re.M)
    serve, train = (textwrap.dedent(text) for text in texts)
    port = free_address().rpartition(":")[2]
    for name in ("server", "trainer"):
        certificate(tmp_path, name)
    (tmp_path / "clients").mkdir()
    (tmp_path / "trainer.key").rename(tmp_path / "clients/trainer.key")
    serve = serve.replace("5555", port)
    train = train.replace("data-machine:5555", f"127.0.0.1:{port}").replace("6400", "640")
    with subprocess.Popen([sys.executable, "-c", serve], cwd=tmp_path) as process:
        command = [sys.executable, "-c", train]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
        process.kill()
    assert done.stdout.splitlines()[-1].startswith("9 (64, 1000) "), done.stderr


# ------------------------------------------------------------------------------------- networks


def ip(*args):
    return subprocess.run(["ip", *args], check=True, capture_output=True, text=True).stdout


@pytest.fixture
def networks():
    """Two networks of this machine, with a link between them, and a function that cuts it."""
    names = [f"pescador-{os.getpid()}-{end}" for end in "ab"]
    made = []
    try:
        for name in names:
            ip("netns", "add", name)
            made.append(name)
        ends = ("type", "veth", "peer", "name", "there", "netns", names[1])
        ip("-n", names[0], "link", "add", "there", *ends)
        for i, name in enumerate(names):
            ip("-n", name, "addr", "add", f"10.77.0.{i + 1}/24", "dev", "there")
            ip("-n", name, "link", "set", "there", "up")
    except (OSError, subprocess.CalledProcessError) as error:
        for name in made:
            ip("netns", "del", name)
        pytest.skip(f"network namespaces are not permitted here: {error}")
    try:
        yield names, lambda to: ip("-n", names[0], "link", "set", "there", to)
    finally:
        for name in names:
            ip("netns", "del", name)


ACROSS = """
    keys = [tuple(key.encode() for key in pair.split()) for pair in sys.argv[2:4]]
    def numbers():
        for i in range(10**9):
            yield {"x": np.full(1000, i)}
            time.sleep(0.001)
    if sys.argv[1] == "server":
        with pescador.Server(
            pescador.Streamer(numbers), "tcp://10.77.0.1:5555",
            key=keys[0], clients=[keys[1][0]], timeout=30,
        ) as server:
            print("serving", flush=True)
            server.wait()
    remote = pescador.RemoteStreamer(
        "tcp://10.77.0.1:5555", server_key=keys[0][0], key=keys[1], timeout=2
    )
    try:
        for i, item in enumerate(remote):
            assert item["x"][0] == i
            if not i % 100:
                print(i, flush=True)
    except pescador.PescadorError as error:
        print(error, flush=True)
"""


def test_a_link_between_two_networks_is_cut_and_restored(networks):
    names, set_link = networks
    body = "import os, sys, time, numpy as np, pescador\n" + textwrap.dedent(ACROSS)
    keys = [b" ".join(pair).decode() for pair in (SERVER, CLIENT)]
    with contextlib.ExitStack() as stack:
        outputs = []
        for name, end in zip(names, ("server", "consumer"), strict=True):
            command = ["ip", "netns", "exec", name, sys.executable, "-c", body, end, *keys]
            process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            stack.callback(process.stdout.close)
            stack.callback(process.wait)
            stack.callback(process.kill)
            outputs.append(process.stdout)
            # The server listens; the consumer reads.
            assert outputs[-1].readline().strip() == ("serving" if end == "server" else "0")
        read = outputs[1].readline
        # For longer than it takes to find out, and less than the timeout.
        set_link("down")
        time.sleep(1.2)
        set_link("up")
        reached = [int(read()) for _ in range(4)]
        assert reached == [100, 200, 300, 400]
        set_link("down")
        assert "was lost, for timeout=2 seconds" in [*outputs[1]][-1]


# ------------------------------------------------------------------------------------- strangers


def strangers(address):
    """Yield what somebody might send who is none of ours."""
    random = np.random.default_rng(0)
    yield b""
    yield b"GET / HTTP/1.1\r\n\r\n"
    for mechanism in (b"NULL", b"CURVE", b"PLAIN"):
        greeting = b"\xff" + bytes(8) + b"\x7f\x03\x01" + mechanism.ljust(20, b"\0") + bytes(32)
        yield greeting
        # A message of 2 ** 60 bytes, a command of as many, and noise.
        yield greeting + b"\x02" + (2**60).to_bytes(8, "big") + bytes(100)
        yield greeting + b"\x06" + (2**60).to_bytes(8, "big") + bytes(100)
        yield greeting + b"\x04\x19\x05READY" + bytes(19)
        for _ in range(5):
            yield greeting + random.bytes(200)
    for _ in range(10):
        yield random.bytes(int(random.integers(1, 500)))


@pytest.mark.parametrize("clear", [True, False])
def test_strangers_get_nothing_take_nothing_and_do_not_disturb(clear):
    with served(Streamer(numbers, 2000), clear) as remote:
        place = ("127.0.0.1", int(remote.server.address.rpartition(":")[2]))
        stream = iter(remote())
        received = [next(stream)]
        held = []
        for noise in strangers(place):
            held.append(socket.create_connection(place))
            with contextlib.suppress(OSError):
                held[-1].sendall(noise)
            received += [next(stream) for _ in range(10)]
        assert remote.server.consumers == 1
        received += stream
        for one in held:
            one.close()
        assert first_of(received) == list(range(2000))


def words(draw, names):
    head = {
        **{"stream": "me", "protocol": 1, "max_iter": None, "skip": 0, "seed": None},
        **{"governs": [], "place": {}, "max_bytes": 1000, "at": 0},
    }
    for name in names:
        head[name] = draw
    return head


def test_consumers_that_say_nonsense_do_not_disturb():
    nonsense = [-1, 10**400, "x", [], {}, [[1], "a"], [10**400, [2**70]]]
    names = ("stream", "protocol", "max_iter", "skip", "seed", "governs", "place", "at")
    with served(Streamer(numbers, 500), max_consumers=4) as remote, zmq.Context() as context:
        stream = iter(remote())
        received = [next(stream)]
        with context.socket(zmq.DEALER) as consumer:
            consumer.linger = 0
            consumer.connect(remote.server.address)
            said = [b"", b"open", b"open\n{\n", b"open\n" + b"[" * 100_000 + b"\n", b"ask\nnull\n"]
            for name in names:
                for value in nonsense:
                    head = json.dumps(words(value, [name])).encode()
                    said += [word + b"\n" + head + b"\n" for word in (b"open", b"ask", b"close")]
                    said.append(b"open\n" + head + b"\nno state")
                    said.append(protocol.question(b"close", "me"))
            consumer.send_multipart([b"several", b"frames"])
            for frame in said:
                consumer.send(frame)
            received += stream
            # Until the answer to what was said last.
            consumer.send(protocol.question(b"ask", "last", at=0))
            answers = {b"refused", b"gone", b"alive", b"items", b"end"}
            while True:
                word, head, *_ = consumer.recv_multipart()
                assert word in answers
                if b'"last"' in head:
                    break
            assert word == b"gone"
        assert first_of(received) == list(range(500))
        assert first_of(remote()(max_iter=3)) == [0, 1, 2]


def test_an_address_may_be_a_path(tmp_path):
    with served(Streamer(data, 2), address=f"ipc://{tmp_path}/socket") as remote:
        assert len(list(remote())) == 2
        stream = remote().iterate()
        next(stream)
        stream.close()


def test_a_server_takes_no_path_of_something_else(tmp_path):
    path = tmp_path / "data.npy"
    address = f"ipc://{path}"
    path.write_text("dear")
    with pytest.raises(PescadorError, match="no socket"):
        Server("ab", address, insecure=True).__enter__()
    assert path.read_text() == "dear"
    path.unlink()
    with served("ab", address=address) as remote:
        with pytest.raises(PescadorError, match="another server"):
            Server("cd", address, insecure=True).__enter__()
        assert list(remote()) == ["a", "b"]
    # What an earlier server has left is nobody's.
    assert path.is_socket()
    with served("cd", address=address) as remote:
        assert list(remote()) == ["c", "d"]


def test_a_worker_of_something_else_does_not_hold_the_port():
    with served("ab") as remote:
        address = remote.server.address
        background = iter(pescador.ZMQStreamer(numbers, start_method="fork"))
        next(background)
    with served("cd", address=address) as remote:
        assert list(remote()) == ["c", "d"]
    background.close()


def test_endless_streams_end_with_their_consumers():
    with served(Streamer(forever, {"x": np.zeros(3)})) as remote:
        for _ in range(3):
            assert len(list(remote()(max_iter=5))) == 5
        wait_until(lambda: remote.server.consumers == 0)
