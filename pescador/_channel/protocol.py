"""Every word that a consumer and its worker say to each other.

They hold the two ends of a pipe, and map the same memory where the system has such memory. Items
are in that memory. A message on the pipe is a word, the first byte of it, and what belongs to it:

========  ==========  =========================================================================
word      said by     meaning
========  ==========  =========================================================================
`WAKE`    both        There is something to read in the memory, or room to write.
`STOP`    consumer    No more is wanted. So does a pipe that is closed.
`ORDERS`  consumer    What a worker of many visits is to do: words (see `parallel/orders.pxd`),
                      where the memory has no room for them.
`VISIT`   consumer    Of these, a visit that goes on from a state: a pickle.
`RUN`     consumer    Of these, the run that visits are part of from now on: a pickle. All visits
                      of the one before are closed. In all three, how many words were written to
                      the memory before comes first, in 8 bytes.
`ITEM`    worker      An item that does not go through the memory: its size in bytes and its tag
                      follow, 8 bytes each, then the item in messages of up to `CHUNK` bytes.
`END`     worker      The last word: a pickle of the error that ended the stream, or of None.
========  ==========  =========================================================================

A worker sends an `ITEM` when the consumer has read all that is in the memory, so there is one order
of items. The stream has ended when an `END` was heard and the memory is empty. A pipe that is
closed without an `END` is that of a worker that was killed.

A worker of many visits (see `pescador.parallel`) tags each item with the number of its visit. It
tells of a visit by items that have one key, a pair of ``"pescador"`` and a word: `PICKLED`, an item
that is no mapping of keys to arrays; `ENDED`, the visit has ended; `FAILED`, it has failed, with a
`Report`; `STATE`, its state after the last item; `CLOSED`, nothing of it is written any more.
"""

import pickle
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from .schema import decode, encode

WAKE = b"w"
STOP = b"s"
ORDERS = b"o"
VISIT = b"v"
RUN = b"r"
ITEM = b"i"
END = b"e"

# In bytes. Small enough for a pipe to take it whole or not at all, even from a process that is
# killed meanwhile.
CHUNK = 16_000

# How often (in seconds) a process that waits looks whether the other one is still there.
HEARTBEAT = 0.2

# What a worker of many visits tells of one, by items.
PICKLED, ENDED, FAILED, STATE, CLOSED = ("item", "ended", "failed", "state", "closed")

# How long (in seconds) a worker that waits for room sleeps before it looks for itself. The consumer
# wakes it when it asks for items, but memory may come back while it does something else.
NAP = 0.01

# An exception: a pickle of it or None, one line, its traceback.
Report = tuple[bytes | None, str, str]


def write_item(item: Any) -> bytes:
    """Return an item as the bytes that `item_from` reads."""
    return pickle.dumps(encode(item), pickle.HIGHEST_PROTOCOL)


def item_from(written: bytes | bytearray) -> dict[Any, Any]:
    """Return the item that `write_item` wrote, in arrays that own their memory."""
    return decode(pickle.loads(written))


def send_item(
    pipe: Connection,
    written: bytes,
    tag: int = 0,
    before_each: Callable[[], object] = lambda: None,
) -> None:
    """Send what `write_item` returned, in messages."""
    before_each()
    pipe.send_bytes(ITEM + len(written).to_bytes(8, "little") + tag.to_bytes(8, "little"))
    for start in range(0, len(written), CHUNK):
        before_each()
        pipe.send_bytes(written, start, min(CHUNK, len(written) - start))


def read_item_head(message: bytes) -> tuple[int, int]:
    """Return how many bytes follow an `ITEM`, and its tag."""
    return int.from_bytes(message[1:9], "little"), int.from_bytes(message[9:], "little")


def news(what: str, value: Any = None, dumps: Any = pickle.dumps) -> dict[Any, Any]:
    """Return an item that tells something of a visit."""
    # Below protocol 5, NumPy's arrays lose their byte order.
    pickled = dumps(value, pickle.HIGHEST_PROTOCOL)
    return {("pescador", what): np.frombuffer(pickled, np.uint8)}


def read_news(item: dict[Any, Any]) -> tuple[str, Any] | None:
    """Return what `news` were given; None for an item of a stream."""
    if len(item) == 1:
        [(key, value)] = item.items()
        if type(key) is tuple and len(key) == 2 and key[0] == "pescador":
            return key[1], pickle.loads(value)
    return None


def order(kind: bytes, what: bytes, n_words: int = 0) -> bytes:
    """Return an `ORDERS`, `VISIT` or `RUN`, before which so many words were written to memory."""
    return kind + n_words.to_bytes(8, "little") + what


def send_end(pipe: Connection, error: Report | None) -> None:
    """Send the last word."""
    pipe.send_bytes(END + pickle.dumps(error))


def read_end(message: bytes) -> Report | None:
    """Return the error of a last word."""
    error: Report | None = pickle.loads(memoryview(message)[1:])
    return error
