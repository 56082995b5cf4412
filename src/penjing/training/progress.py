"""What a person sees while it works: bars with an estimate of the time left, or plain lines where there is no terminal."""

import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from penjing.units import show_seconds


class Bar(Protocol):
    """One thing under way."""

    def advance(self, steps: int = 1, info: str = "") -> None:
        """Some steps further; `info` is shown behind the bar."""


class Reporter(Protocol):
    """Where progress goes."""

    def say(self, text: str) -> None:
        """A line that stays."""

    def bar(self, title: str, total: int) -> AbstractContextManager[Bar]:
        """A bar for `total` steps, for the time of a with block."""

    def plan(self, total_epochs: int) -> None:
        """How many epochs the whole run has."""

    def epoch_done(self) -> None:
        """One of them is over."""


class _SilentBar:
    def advance(self, steps: int = 1, info: str = "") -> None:
        pass


class Silent:
    """Says nothing."""

    def say(self, text: str) -> None:
        pass

    def plan(self, total_epochs: int) -> None:
        pass

    def epoch_done(self) -> None:
        pass

    @contextmanager
    def bar(self, title: str, total: int) -> Iterator[Bar]:
        yield _SilentBar()


class _LiveBar:
    def __init__(self, live: Progress, task: TaskID) -> None:
        self.live, self.task = live, task

    def advance(self, steps: int = 1, info: str = "") -> None:
        self.live.update(self.task, advance=steps, info=info)


class Live:
    """Rich bars on a terminal, the whole run on the last line; a line every few seconds elsewhere."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)
        self.total = 0
        self.done = 0
        self.begun = time.monotonic()
        self._overall: TaskID | None = None
        self._live = Progress(
            TextColumn("{task.description}", justify="left"),
            BarColumn(bar_width=28),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[info]}", style="dim"),
            console=self.console,
            transient=True,
        )

    def say(self, text: str) -> None:
        self.console.print(text, highlight=False)

    def plan(self, total_epochs: int) -> None:
        self.total = total_epochs
        if self.console.is_terminal and total_epochs:
            self._overall = self._live.add_task("whole run", total=total_epochs, info="")

    def epoch_done(self) -> None:
        self.done += 1
        if self._overall is not None:
            self._live.update(self._overall, completed=min(self.done, self.total))

    @contextmanager
    def bar(self, title: str, total: int) -> Iterator[Bar]:
        if not self.console.is_terminal:
            yield _LineBar(self, title, total)
            return
        task = self._live.add_task(title, total=total, info="")
        self._live.start()
        try:
            yield _LiveBar(self._live, task)
        finally:
            self._live.remove_task(task)
            self._live.stop()


class _LineBar:
    """Prints where it stands at most every ten seconds."""

    def __init__(self, live: Live, title: str, total: int) -> None:
        self.live, self.title, self.total = live, title, max(total, 1)
        self.steps = 0
        self.begun = self.shown = time.monotonic()

    def advance(self, steps: int = 1, info: str = "") -> None:
        self.steps += steps
        now = time.monotonic()
        if now - self.shown < 10:
            return
        self.shown = now
        left = (now - self.begun) / self.steps * (self.total - self.steps)
        self.live.console.print(
            f"  {self.title}: {self.steps}/{self.total}, about {show_seconds(left)} left  {info}", highlight=False
        )
        sys.stderr.flush()
