"""Every word that a consumer and a server on another machine say to each other.

A message has a word, a head of JSON, and what belongs to it. A server sends them as frames, a
consumer as lines of one frame: ZeroMQ aborts a process that reads a message of several frames while
its connection ends by the process's own doing, and that is nothing to leave to strangers.

=========  ========  ===========================================================================
word       said by   meaning
=========  ========  ===========================================================================
`OPEN`     consumer  Begin a stream; the head says which, from where, and how much may be on its
                     way. The rest is the state to go on from, as a server has sent it.
`ASK`      consumer  All records before number ``at`` have come; send on from there. Said again and
                     again by one that waits, and on each new connection.
`CLOSE`    consumer  No more is wanted.
`ITEMS`    server    Records that are alike: ``n`` from number ``at`` on, of ``size`` bytes. Their
                     schema follows, and a frame for each key; see `values`.
`END`      server    The last record, number ``at``: the error that ended the stream, as its pickle,
                     one line, and traceback, or none.
`ALIVE`    server    The answer to `OPEN` and `ASK`, and a test whether the consumer is there.
                     ``window`` bytes may wait for an `ASK`.
`GONE`     server    There is no such stream (any more).
`REFUSED`  server    There will be none, and why.
=========  ========  ===========================================================================

Each head names the stream by a random number that the consumer has chosen. `OPEN` has `PROTOCOL`
in it, and a server that speaks another one refuses. Records are the items, and among them reports
of the stream's state.
"""

import json
from contextlib import suppress
from typing import Any

import numpy as np

#: The version of all this.
PROTOCOL = 1

OPEN = b"open"
ASK = b"ask"
CLOSE = b"close"
ITEMS = b"items"
END = b"end"
ALIVE = b"alive"
GONE = b"gone"
REFUSED = b"refused"

# The largest message that a server takes, in bytes: there is a state in it.
LARGEST = 64 * 2**20
# And the largest head: lists in JSON take many times as much memory when they are read.
_LARGEST_HEAD = 2**16

# In seconds; what ZeroMQ counts to.
_LONGEST = 6000
# Messages of so many bytes come in memory of their own; and almost the most that glibc learns from.
_LARGE = 2**17
_KEPT = 31 * 2**20


def message(word: bytes, stream: str, *frames: Any, **head: Any) -> list[Any]:
    """Return the frames of a message of a server."""
    return [word, json.dumps({"stream": stream, **head}).encode(), *frames]


def question(word: bytes, stream: str, rest: bytes = b"", **head: Any) -> bytes:
    """Return the frame of a message of a consumer."""
    return b"\n".join(message(word, stream, rest, **head))


def read_question(frame: bytes) -> tuple[bytes, Any, bytes]:
    """Return word, head and rest of a message that anybody may have sent."""
    word, head, rest = frame.split(b"\n", 2)
    if len(head) > _LARGEST_HEAD:
        raise ValueError(f"a head of {len(head)} bytes")
    return word, json.loads(head), rest


def keep_memory(size: int, max_bytes: int) -> bool:
    """Have the C library keep the memory of large messages for the next ones; tell whether it does.

    To fault in fresh pages costs several times as much as to copy what is in them. glibc gives free
    memory back to the system above twice the size of the largest block that it has ever unmapped.
    """
    if size < _LARGE:
        return False
    with suppress(MemoryError):
        np.empty(min(max_bytes, _KEPT), np.uint8)
    return True


def tick(timeout: float) -> float:
    """Return the seconds between two questions of a consumer that waits, or tests of a server."""
    return min(1.0, timeout / 4)


def set_heartbeats(socket: Any, timeout: float) -> None:
    """Have ZeroMQ end a connection on which nothing is heard; its own threads see to it."""
    interval = max(int(min(timeout, _LONGEST) * 1000 / 8), 1)
    socket.heartbeat_ivl = interval
    socket.heartbeat_timeout = 2 * interval
    # What the other end is told, in case it has not set its own.
    socket.heartbeat_ttl = 3 * interval
    socket.handshake_ivl = 8 * interval
