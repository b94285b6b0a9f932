"""Worker processes that visits run in."""

import math
import os
import pickle
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np

from .. import _schedule
from .._channel import process, protocol
from .._channel.consumer import Channel, shared_memory
from .._channel.protocol import read_news
from .._channel.schema import NUMBERS
from .._channel.signals import whole
from .._rows import BatchRows
from ..exceptions import PescadorError
from .placement import without_those_that_stay
from .pool import Kind, Pool
from .worker import VisitsOf

__all__ = ["ProcessKind", "Processes"]

# So often in a row, without an item in between, workers may be killed before that is an error.
_ATTEMPTS = 3
# Items of fewer bytes are copied as fast as they are pointed to. Of 264 bytes, the consumer takes
# 0.30 us with rows and 0.48 without.
_LEAST_ROW = 128
# The reader has one batch while another one is filled.
_LEAST_BATCHES = 2
# So many visits of a worker that was killed are named; more are counted.
_NAMED = 3
# How long (in seconds) to wait between two looks at what all workers have sent.
_PAUSE = 0.0005


class ProcessKind(Kind):
    """Processes of this machine."""

    worker = "process"

    def new_pool(
        self, parallel: Any, tree: Any, workers: int | None, stays: Any, watched: Any
    ) -> Pool:
        return Processes(parallel, tree, workers or 1, stays)


class Processes(Pool):
    """Worker processes, and what is on its way from them.

    Parameters
    ----------
    stays : function
        Tells of a streamer why its visits run here; None where they do not. The others are those
        of `Pool`.
    """

    def __init__(
        self, parallel: Any, tree: Any, workers: int, stays: Callable[[Any], str | None]
    ) -> None:
        super().__init__(parallel, tree, workers)
        self.sent = tree
        # By fork, all of it is there.
        if (parallel.start_method or process.default_method()) != "fork":
            self.sent = without_those_that_stay(tree, stays)
        # As much again is for batches: an iteration fills one or the other.
        self.max_bytes = max(parallel.max_bytes // workers, 1)
        self.makers: list[Any] = []
        self.run = b""
        # Workers that were lost since the last item, and how many items had arrived by then.
        self.n_lost = self.n_before = 0
        # What all workers can write to: batches.
        self.arena: Any = None
        # Of the items that are written to rows: see `ring.Reader`.
        self.layout: Any = None
        # Whether a message may be half sent or read, because somebody has interrupted it.
        self.is_torn = False

    # ---------------------------------------------------------------------------------- begin, end

    def begin(self) -> None:
        memory = shared_memory(self.parallel.max_bytes)
        if memory is not None:
            from .._channel.memory import Arena

            self.arena = Arena(memory)
        for _ in range(self.workers):
            self.makers.append(self._new_maker())

    def _new_maker(self) -> Any:
        memory = None if self.arena is None else self.arena.memory
        channel = Channel(self.parallel, VisitsOf(self.sent, memory), None, self.max_bytes)
        if memory is not None:
            memory.claim(False)
        try:
            channel.begin()
        except BaseException:
            channel.end()
            raise
        finally:
            if memory is not None:
                memory.claim()
        if channel.reader is not None and channel.memory is not None:
            channel.reader.arena = self.arena
            channel.reader.layout = self.layout
            from .._channel.orders import OrderWriter

            assert channel.bell is not None
            channel.orders = OrderWriter(channel.memory, channel.bell.ring)
        # Not by methods: a maker would hold us, and nobody would end the workers.
        pool = weakref.proxy(self)
        maker = _schedule.Orders(
            channel,
            channel.check_owner,
            channel.orders,
            lambda words: pool.send(channel, protocol.ORDERS, words),
            lambda visit: pool.send_visit(channel, visit),
        )
        maker.reader, maker.tell = channel.reader, lambda *news: pool.note(*news)
        maker.beside = self.makers
        if self.run:
            self.send(channel, protocol.RUN, self.run)
        return maker

    def wait_for_end(self) -> None:
        if self.owner != os.getpid():
            return
        for maker in self.makers:
            maker.owner.stop()
        for maker in self.makers:
            maker.owner.wait_for_end()

    def end(self) -> None:
        # All but their arrays.
        while self.makers:
            _end(self.makers.pop())
        self.written_until_closed.clear()
        arena, self.arena = self.arena, None
        if arena is not None:
            arena.memory.close()
            arena.memory.close_descriptor()

    def is_usable(self, parallel: Any, tree: Any) -> bool:
        return (
            super().is_usable(parallel, tree)
            and not self.is_torn
            and not any(maker.owner.is_over() or maker.owner.is_gone() for maker in self.makers)
        )

    def join(self, schedule: Any, run: tuple[Any, ...]) -> None:
        super().join(schedule, run)
        self.n_lost = self.n_before = 0
        # Of what makes up more than half of its memory, a reader makes copies: for those that are
        # made early and those that the consumer holds.
        schedule.max_sent = self.max_bytes * self.workers * 3 // 8
        if self.arena is not None:
            self._lay_out(None)
        self.run = pickle.dumps(run)
        for maker in self.makers:
            maker.flush()
            self.send(maker.owner, protocol.RUN, self.run)

    # -------------------------------------------------------------------------------------- orders

    def send_visit(self, channel: Channel, visit: Any) -> None:
        """Have a visit begin from a state."""
        what = (visit.number, visit.path, visit.bound, visit.base, visit.skip)
        self.send(channel, protocol.VISIT, pickle.dumps(what))

    def send(self, channel: Channel, kind: bytes, what: bytes) -> None:
        """Send a worker an order that is not in memory."""
        channel.check_owner()
        before, self.is_torn = self.is_torn, True
        n_words = 0 if channel.orders is None else channel.orders.before_message()
        channel.say(protocol.order(kind, what, n_words))
        self.is_torn = before

    def place(self, visit: Any) -> Any:
        return _schedule.least_busy(self.makers)

    def reach(self) -> int:
        for maker in self.makers:
            # That of a worker which is given too little would never be known otherwise.
            if maker.owner.memory is not None:
                maker.cost = maker.owner.memory.cost
        return _schedule.reach_of(self.makers)

    # --------------------------------------------------------------------------------------- items

    def wait(self, visit: Any) -> None:
        self.is_torn = True
        _schedule.flush_all(self.makers)
        while True:
            maker = visit.maker
            channel = maker.owner
            channel.check_owner()
            # Asked before the look at the memory: nothing is written there after that.
            is_over = channel.is_over()
            self._receive(maker)
            if visit.is_ready:
                break
            if is_over:
                self._replace(maker)
            elif not (channel.has_items() or channel.listen()):
                # Who was interrupted may have written what it has not heard of.
                channel.wake()
        self.is_torn = False

    def wait_until(self, condition: Callable[[], bool]) -> None:
        self.is_torn = True
        _schedule.flush_all(self.makers)
        while True:
            # A copy in a forked process takes nothing that arrives.
            process.check_owner(self.owner)
            lost = [maker for maker in self.makers if maker.owner.is_over()]
            for maker in self.makers:
                self._receive(maker)
            if condition():
                break
            for maker in lost:
                self._replace(maker)
            for maker in self.makers:
                channel = maker.owner
                if not (channel.is_over() or channel.has_items() or channel.listen(_PAUSE)):
                    channel.wake()
        self.is_torn = False

    def _receive(self, maker: Any) -> None:
        """Take what a worker has sent."""
        channel = maker.owner
        if channel.incoming is not None and not channel.missing:
            tag, items = channel.tag, channel.items()
            for item in items:
                self.note(tag, item, sum(array.nbytes for array in item.values()))
        _schedule.take_in(self.schedule, maker)

    def note(self, number: int, item: dict[Any, Any], size: int) -> None:
        """Take an item, or note what a worker tells of a visit."""
        before, self.is_torn = self.is_torn, True
        self._note(number, item, size)
        self.is_torn = before

    def _note(self, number: int, item: dict[Any, Any], size: int) -> None:
        news = read_news(item)
        if news is None:
            self.schedule.receive(number, item, size)
            return
        what, value = news
        if what == protocol.PICKLED:
            self.schedule.receive(number, value, size)
        elif what == protocol.CLOSED:
            _schedule.close_rows(self.written_until_closed, number)
        elif what == protocol.STATE:
            self.schedule.receive_state(number, value)
        else:
            # Nor is anything written after its end; whoever closes it then is not answered.
            _schedule.close_rows(self.written_until_closed, number)
            self.schedule.receive_end(number, value)

    def _replace(self, maker: Any) -> None:
        """Have another worker do what one was to do that is gone, or raise what became of it."""
        if self.schedule.n_arrived > self.n_before:
            self.n_lost, self.n_before = 0, self.schedule.n_arrived
        self.n_lost += 1
        if not self.parallel.restart or maker.owner.error is not None or self.n_lost > _ATTEMPTS:
            self._raise_loss(maker)
        self.schedule.n_restarts += 1
        lost = self.schedule.visits_at(maker)
        # As a whole: where it was interrupted halfway, a worker would be left to itself.
        whole(self._put_another, maker)
        self.schedule.begin_again(lost)
        for other in self.makers:
            other.flush()

    def _raise_loss(self, maker: Any) -> None:
        """Raise what became of a worker that is not replaced, and why it is not."""
        channel = maker.owner
        if channel.error is not None:
            channel.raise_error()
        how = "has ended" if channel.ended else channel.how_it_ended()
        visits = self.schedule.visits_at(maker)
        # If one of them has ended it, it is one of which an item was to be made.
        visits = [visit for visit in visits if visit.ordered > visit.arrived] or visits
        names = [visit.name for visit in visits[:_NAMED]]
        if len(visits) > _NAMED:
            names.append(f"{len(visits) - _NAMED:,} more")
        ran = f"while it ran {'; '.join(names)}" if names else "while it ran nothing"
        why = "with restart=True, another one would take its place, and not an item change"
        if self.parallel.restart:
            why = f"the {_ATTEMPTS} that were lost before it gave no item either"
        raise PescadorError(f"a worker process {how}, {ran}; {why}")

    def new_rows(self, begins: int, size: int, columns: list[Any]) -> Any:
        row_bytes = [dtype.itemsize * math.prod(shape) for _, dtype, shape, _ in columns]
        are_sent = all(of is np.ndarray or of in NUMBERS for *_, of in columns)
        if self.arena is None or not are_sent:
            return None
        if sum(row_bytes) < _LEAST_ROW or not all(row_bytes):
            return None
        rows = BatchRows(self.arena, begins, size, columns)
        if rows.room < _LEAST_BATCHES:
            return None
        self._lay_out(rows.layout)
        return rows

    def _lay_out(self, layout: Any) -> None:
        self.layout = layout
        for maker in self.makers:
            # None of a worker that there was no memory for: its items are copied to their rows.
            if (reader := maker.owner.reader) is not None:
                reader.layout = layout

    def _put_another(self, maker: Any) -> None:
        """Have another worker in the place of one."""
        _end(maker)
        for number, (other, *_) in list(self.written_until_closed.items()):
            if other is maker:
                _schedule.close_rows(self.written_until_closed, number)
        self.makers[self.makers.index(maker)] = self._new_maker()


def _end(maker: Any) -> None:
    """End a worker; visits that it has ended before may still know it."""
    maker.reader = None
    maker.owner.end()
