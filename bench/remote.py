"""What a server on another machine costs: small samples, large ones, and the same by hand.

    python bench/remote.py [--rounds N] [--keys]

A server process sends 1 KB samples, and 1 MB ones, to this one over the loopback. By hand is a
PUSH and a PULL of ZeroMQ: a message a sample, of its bytes alone. All take turns, and the medians
are shown: the time that passed, the processor time of the thread that reads, and for large samples
that of copying them once in memory.
"""

import argparse
import contextlib
import statistics
import subprocess
import sys
import time

import numpy as np
import zmq

import pescador

CASES = {"1 KB": (1024, 100_000), "1 MB": (2**20, 1_000)}


def samples(size):
    x = np.ones(size, np.uint8)
    while True:
        yield {"x": x}


def serve(address, size, keys):
    lock = {"key": keys[0], "clients": [keys[1][0]]} if keys else {"insecure": True}
    pescador.serve(pescador.Streamer(samples, size), address, **lock)


def push(address, size):
    with zmq.Context() as context, context.socket(zmq.PUSH) as socket:
        socket.linger = 0
        socket.sndhwm = max(2**25 // size, 2)
        socket.connect(address)
        for item in samples(size):
            socket.send(item["x"], copy=size < 2**16)


@contextlib.contextmanager
def process(*args):
    """Another process of this script."""
    started = subprocess.Popen([sys.executable, __file__, *map(str, args)])
    try:
        yield
    finally:
        started.kill()
        started.wait()


@contextlib.contextmanager
def by_server(size, keys):
    with contextlib.ExitStack() as stack:
        with zmq.Context() as context, context.socket(zmq.PULL) as socket:
            address = f"tcp://127.0.0.1:{socket.bind_to_random_port('tcp://127.0.0.1')}"
        written = [half.decode() for pair in keys for half in pair]
        stack.enter_context(process("serve", address, size, *written))
        own = {"server_key": keys[0][0], "key": keys[1]} if keys else {"insecure": True}
        stream = pescador.RemoteStreamer(address, **own).iterate()
        yield stack.enter_context(contextlib.closing(stream))


@contextlib.contextmanager
def by_hand(size):
    with zmq.Context() as context, context.socket(zmq.PULL) as socket:
        socket.linger = 0
        socket.rcvhwm = max(2**25 // size, 2)
        address = f"tcp://127.0.0.1:{socket.bind_to_random_port('tcp://127.0.0.1')}"
        with process("push", address, size):
            yield iter(lambda: {"x": np.frombuffer(socket.recv(copy=False), np.uint8)}, None)


def timed(stream, n):
    """Seconds that pass, and of this thread's processor time, a sample."""
    start, started = time.perf_counter(), time.thread_time()
    for _ in range(n):
        next(stream)
    return (time.perf_counter() - start) / n, (time.thread_time() - started) / n


def copied(size, n):
    """Seconds to copy a sample once, from memory that is not in the cache."""
    source = np.ones((max(2**26 // size, 1), size), np.uint8)
    target = np.empty_like(source)
    start = time.perf_counter()
    for i in range(n):
        target[i % len(target)] = source[i % len(source)]
    return (time.perf_counter() - start) / n


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--keys", action="store_true", help="encrypted, with keys of both ends")
    options = parser.parse_args()
    keys = (zmq.curve_keypair(), zmq.curve_keypair()) if options.keys else ()
    for name, (size, n) in CASES.items():
        with by_server(size, keys) as ours, by_hand(size) as hand:
            rounds = {"RemoteStreamer": [], "PUSH and PULL": [], "memcpy": []}
            timed(ours, n // 10), timed(hand, n // 10)
            for _ in range(options.rounds):
                rounds["RemoteStreamer"].append(timed(ours, n))
                rounds["PUSH and PULL"].append(timed(hand, n))
                if size >= 2**20:
                    rounds["memcpy"].append((copied(size, n),) * 2)
        for what, times in rounds.items():
            if not times:
                continue
            wall, own = (statistics.median(column) for column in zip(*times, strict=True))
            print(
                f"{name}  {what:15}{wall * 1e6:9.2f} us a sample,{own * 1e6:9.2f} us of the "
                f"reader,{size / wall / 1e6:9.0f} MB/s"
            )


if __name__ == "__main__":
    if sys.argv[1:2] == ["serve"]:
        address, size, *written = sys.argv[2:]
        halves = [half.encode() for half in written]
        serve(address, int(size), (tuple(halves[:2]), tuple(halves[2:])) if halves else ())
    elif sys.argv[1:2] == ["push"]:
        push(sys.argv[2], int(sys.argv[3]))
    else:
        main()
