"""News of failures among the processes of a run, by way of a store that all of them reach.

A process that fails between two collectives says why before it ends. The others find out while they wait for it: when its
connections break, they look here for the reason; where nothing breaks, as on a GPU, they are ended after a while.
"""

import contextlib
import logging
import os
import pickle
import threading
import time
import traceback
from typing import NamedTuple

from dnnlib.errors import UserError, first_line, trouble_with_a_file

POLL_S = 0.5
READING_S = 5.0  # for the others to read the news, before the first process ends and the store perhaps with it
NOTICE_S = 8.0  # for a process to notice by itself that another one has failed
_logger = logging.getLogger(__name__)


class Failure(NamedTuple):
    """Why a process failed. kind: the exception's class, None for a bug; details: a bug's traceback."""

    rank: int
    text: str
    kind: type | None
    details: str | None


def describe_failure(rank, error, kinds):
    """The Failure of an exception. kinds: classes whose message says all there is to say; other exceptions are bugs."""
    if isinstance(error, kinds):
        return Failure(rank, str(error), next(kind for kind in type(error).__mro__ if '<locals>' not in kind.__qualname__), None)
    line = trouble_with_a_file(error)
    if line is not None:
        return Failure(rank, line, UserError, None)
    return Failure(rank, f'{type(error).__name__}: {first_line(error)}', None, ''.join(traceback.format_exception(error)))


class Watch:
    """One process's watch over the others; a thread looks for news.

    store: a torch.distributed.Store for this purpose alone; rank, processes: which process this is, and of how many.
    """

    def __init__(self, store, rank, processes):
        self._store, self._rank, self._processes = store, rank, processes
        self._known, self._noticed, self._over = None, threading.Event(), threading.Event()
        self._settled, self._alarm = 0, None
        self._thread = threading.Thread(target=self._look, args=(store.clone(),), daemon=True)
        self._thread.start()

    def tell(self, failure):
        """Say that this process has failed. The first one to do so is heard."""
        self._noticed.set()
        with contextlib.suppress(RuntimeError):  # the store may have ended with another process
            if self._store.add('failures', 1) == 1:
                self._store.set('failure', pickle.dumps(failure))

    def failure(self):
        """The Failure that was told, or None. Whoever asks has noticed."""
        self._noticed.set()
        with contextlib.suppress(RuntimeError):
            self._read(self._store)
        return self._known

    def has_news(self):
        """Whether the thread has heard of a failure; without asking the store."""
        return self._known is not None

    # Failures that the processes settle among themselves are numbered, by all of them alike.

    def raise_alarm(self):
        """Have the others meet this process, which has failed."""
        with contextlib.suppress(RuntimeError):
            self._store.set(f'alarm/{self._settled}', b'1')

    def alarmed(self):
        """Whether a process has failed and waits for this one; without asking the store."""
        return self._alarm == self._settled

    def settle(self):
        """The processes have met."""
        self._settled += 1

    def silent(self):
        """The ranks of the processes that do not answer: they are gone."""
        others = [rank for rank in range(self._processes) if rank != self._rank]
        try:
            self._store.set('roll call', b'1')
            deadline = time.monotonic() + 6 * POLL_S
            while others and time.monotonic() < deadline:
                time.sleep(POLL_S / 5)
                others = [rank for rank in others if not self._store.check([f'here/{rank}'])]
            return others
        except RuntimeError:
            return [0]  # which the store is gone with

    def close(self, failed):
        """End the watch. failed: whether the run has; if one told why, the first process waits until the others have read it."""
        self._over.set()
        self._thread.join()
        if not failed:
            return
        with contextlib.suppress(RuntimeError):
            self._store.add('read', 1)
            deadline = time.monotonic() + READING_S
            told = self._store.add('failures', 0) > 0
            while told and self._rank == 0 and self._store.add('read', 0) < self._processes and time.monotonic() < deadline:
                time.sleep(POLL_S / 5)

    def _read(self, store):
        if self._known is None and store.check(['failure']):
            self._known = pickle.loads(store.get('failure'))

    def _look(self, store):
        answered = False
        with contextlib.suppress(RuntimeError):  # the store has ended: the collectives will notice
            while not self._over.wait(POLL_S):
                if not answered and store.check(['roll call']):
                    store.set(f'here/{self._rank}', b'1')
                    answered = True
                number = self._settled
                if store.check([f'alarm/{number}']):
                    self._alarm = number
                self._read(store)
                if self._known is not None:
                    self._insist(self._known)
                    return

    def _insist(self, failure):
        """End this process unless it notices the failure soon: it may wait for a GPU that waits for the other one."""
        deadline = time.monotonic() + NOTICE_S
        while time.monotonic() < deadline and not self._noticed.wait(POLL_S):
            if self._over.is_set():
                return
        if not self._noticed.is_set():
            _logger.error('process %d of %d has failed: %s', failure.rank, self._processes, failure.details or failure.text)
            os._exit(1)
