"""Every word that a consumer and its worker say to each other.

They hold the two ends of a pipe, and map the same memory where the system has such memory. Items
are in that memory. A message on the pipe is a word, the first byte of it, and what belongs to it:

========  ==========  =========================================================================
word      said by     meaning
========  ==========  =========================================================================
`WAKE`    both        There is something to read in the memory, or room to write.
`STOP`    consumer    No more is wanted. So does a pipe that is closed.
`ITEM`    worker      An item that does not go through the memory: its size in bytes follows,
                      8 bytes, then the item in messages of up to `CHUNK` bytes.
`END`     worker      The last word: a pickle of the error that ended the stream, or of None.
========  ==========  =========================================================================

A worker sends an `ITEM` when the consumer has read all that is in the memory, so there is one order
of items. The stream has ended when an `END` was heard and the memory is empty. A pipe that is
closed without an `END` is that of a worker that was killed.
"""

import pickle
from multiprocessing.connection import Connection
from typing import Any

from .schema import decode, encode

__all__ = [
    "CHUNK",
    "END",
    "HEARTBEAT",
    "ITEM",
    "NAP",
    "STOP",
    "WAKE",
    "Report",
    "item_from",
    "read_end",
    "read_item_size",
    "send_end",
    "send_item",
    "write_item",
]

WAKE = b"w"
STOP = b"s"
ITEM = b"i"
END = b"e"

# In bytes. Small enough for a pipe to take it whole or not at all, even from a process that is
# killed meanwhile.
CHUNK = 16_000

# How often (in seconds) a process that waits looks whether the other one is still there.
HEARTBEAT = 0.2

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


def send_item(pipe: Connection, written: bytes) -> None:
    """Send what `write_item` returned."""
    pipe.send_bytes(ITEM + len(written).to_bytes(8, "little"))
    for start in range(0, len(written), CHUNK):
        pipe.send_bytes(written, start, min(CHUNK, len(written) - start))


def read_item_size(message: bytes) -> int:
    """Return how many bytes follow an `ITEM`."""
    return int.from_bytes(message[1:], "little")


def send_end(pipe: Connection, error: Report | None) -> None:
    """Send the last word."""
    pipe.send_bytes(END + pickle.dumps(error))


def read_end(message: bytes) -> Report | None:
    """Return the error of a last word."""
    error: Report | None = pickle.loads(memoryview(message)[1:])
    return error
