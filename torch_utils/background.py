"""Work that a training loop need not wait for: files are encoded and written while the next step runs."""

from concurrent.futures import ThreadPoolExecutor


class Background:
    """One thread that does what it is given, in order. An error comes out of the next `give`, `check` or `finish`."""

    def __init__(self):
        self._thread, self._last = ThreadPoolExecutor(max_workers=1), None

    def give(self, function, *arguments):
        """Have `function(*arguments)` done; waits for what was given before, so that work cannot pile up."""
        self.finish()
        self._last = self._thread.submit(function, *arguments)

    def check(self):
        """Raise the error of what is done, if it had one."""
        if self._last is not None and self._last.done():
            self.finish()

    def finish(self):
        """Wait until all is done."""
        last, self._last = self._last, None
        if last is not None:
            last.result()
