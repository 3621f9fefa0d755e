"""One line on stderr, updated in place, with the time left."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TextIO


class ProgressLine:
    """Writes progress: in place on a terminal, a line for each tenth elsewhere.

    Args:
        title: what is going on.
        stream: to write to; stderr when None.
        clock: seconds.

    Example:
        >>> import io
        >>> from latency_lab.cli.progress import ProgressLine
        >>> log, times = io.StringIO(), iter([0.0, 65.0])
        >>> line = ProgressLine("profiling", log, lambda: next(times))
        >>> line(5, 10)
        >>> print(log.getvalue(), end="")
        profiling  50 %  5/10 blocks, 1:05 left
    """

    def __init__(self, title: str, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._title = title
        self._stream = sys.stderr if stream is None else stream
        self._clock = clock
        self._in_place = self._stream.isatty()
        self._began = self._shown = clock()
        self._tenth, self._done = -1, 0
        self._open = False

    def __call__(self, done: int, total: int) -> None:
        """Show that `done` of `total` blocks are measured, if it is time to."""
        now, share = self._clock(), done / max(total, 1)
        if done < self._done:  # another pass began
            self._began, self._tenth = now, -1
        self._done = done
        if not self._due(now, share):
            return
        left = (now - self._began) / max(done, 1) * (total - done)
        minutes, seconds = divmod(round(left), 60)
        text = f"{self._title} {100 * share:3.0f} %  {done}/{total} blocks, {minutes}:{seconds:02d} left"
        self._stream.write(f"\r{text}\x1b[K" if self._in_place else f"{text}\n")
        self._stream.flush()
        self._shown, self._tenth, self._open = now, int(share * 10), self._in_place

    def close(self) -> None:
        """Leave the line, so that what follows starts on its own."""
        if self._open:
            self._stream.write("\n")
            self._open = False

    def __enter__(self) -> ProgressLine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _due(self, now: float, share: float) -> bool:
        """At most five times a second in place; at each new tenth elsewhere."""
        if self._in_place:
            return now - self._shown >= 0.2 or share >= 1
        return int(share * 10) > self._tenth
