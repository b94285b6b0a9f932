"""Both ends of a channel's memory, in one process."""

import os

import pytest

from pescador._channel import protocol

memory = pytest.importorskip("pescador._channel.memory", reason="there is no shared memory here")
ring = pytest.importorskip("pescador._channel.ring")

MEGA = 2**20


class Pair:
    """Both ends of a memory. The reader runs when the writer has to wait, and at the end."""

    def __init__(self, max_bytes=MEGA, copy=False):
        self.memory = memory.SharedMemory(max_bytes)
        self.descriptor = os.dup(self.memory.fileno())
        self.memory.close_descriptor()
        self.reader = ring.Reader(self.memory, None, copy)
        other = memory.SharedMemory(max_bytes, os.dup(self.descriptor))
        self.writer = ring.Writer(other, lambda: None)
        self.by_pipe = 0
        self.received = []

    def close(self):
        os.close(self.descriptor)

    def receive(self):
        """Take one item; the writer waits only if there is one."""
        self.received.append(next(self.reader))

    def send(self, items):
        iterator = iter(items)
        while (why := self.writer.fill(iterator)) != "ended":
            if why == "full":
                self.receive()
            else:
                # All that was sent before has been read.
                assert next(self.reader, None) is None
                written = protocol.write_item(self.writer.take_pending())
                self.received.append(protocol.item_from(written))
                self.by_pipe += 1
                self.reader.by_pipe = self.by_pipe

    def through(self, items):
        """What comes out."""
        self.send(items)
        self.received += self.reader
        return self.received

    def pages(self):
        """How many bytes of memory the system has given."""
        return os.fstat(self.descriptor).st_blocks * 512
