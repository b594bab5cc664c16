"""Signals that ask a long run to stop: noted at once, obeyed when it suits."""

import contextlib
import os
import signal
import time

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
STOPPED = 75  # exit code of a run that was asked to stop, and can go on
SAME_REQUEST_S = 1.0  # a scheduler and a parent process may pass the same request on, one after the other


class _Handling:
    """While entered, the stop signals go to `_handle(number)`."""

    def __enter__(self):
        self._former = {number: signal.signal(number, lambda number, _: self._handle(number)) for number in SIGNALS}
        return self

    def __exit__(self, *_):
        for number, handler in self._former.items():
            signal.signal(number, handler)


class StopRequests(_Handling):
    """While entered, SIGTERM, SIGINT and SIGUSR1 only set `received` to the signal's name.

    A second one, later than SAME_REQUEST_S, ends the process at once with exit code 128 + its number.
    """

    def __init__(self):
        self.received, self._since, self._nothing_to_lose = None, None, None

    @contextlib.contextmanager
    def obeyed_at_once(self, exit_code):
        """While entered, there is nothing to lose: a signal, also one that came before, ends the process with `exit_code`."""
        self._nothing_to_lose = exit_code
        try:
            if self.received is not None:
                os._exit(exit_code)
            yield
        finally:
            self._nothing_to_lose = None

    def _handle(self, number):
        if self._nothing_to_lose is not None:
            os._exit(self._nothing_to_lose)
        now = time.monotonic()
        if self.received is None:
            self.received, self._since = signal.Signals(number).name, now
        elif now - self._since > SAME_REQUEST_S:
            os._exit(128 + number)


class Forwarding(_Handling):
    """While entered, a stop signal that this process gets goes on, as SIGTERM, to the processes `pids`."""

    def __init__(self, pids):
        self.pids, self.received = pids, False

    def _handle(self, number):
        self.received = True
        for pid in self.pids:
            with contextlib.suppress(ProcessLookupError):  # it has ended
                os.kill(pid, signal.SIGTERM)


def ignore_stop_requests(*_):
    """For helper processes: they end when the process ends that they work for."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
