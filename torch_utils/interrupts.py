"""Signals that ask a long run to stop: noted at once, obeyed when it suits."""

import os
import signal
import time

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
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
        self.received, self._since = None, None

    def _handle(self, number):
        now = time.monotonic()
        if self.received is None:
            self.received, self._since = signal.Signals(number).name, now
        elif now - self._since > SAME_REQUEST_S:
            os._exit(128 + number)


class Forwarding(_Handling):
    """While entered, the stop signals that this process gets go on to the processes `pids`."""

    def __init__(self, pids):
        self.pids = pids

    def _handle(self, number):
        for pid in self.pids:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                pass  # it has ended


def ignore_stop_requests(*_):
    """For helper processes: they end when the process ends that they work for."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
