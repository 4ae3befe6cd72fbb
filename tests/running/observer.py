"""An observer of runs, for tests."""

from collections import Counter
from collections.abc import Callable
from typing import TypeVar

from retbench.running import events

Act = Callable[[events.RunEvent], None]
Kind = TypeVar("Kind")


class Observer:
    """Keeps every event, and does something on some."""

    def __init__(self, act: Act | None = None) -> None:
        self.received: list[events.RunEvent] = []
        self._act = act

    def __call__(self, event: events.RunEvent, /) -> None:
        self.received.append(event)
        if self._act is not None:
            self._act(event)

    def kinds(self) -> Counter[str]:
        """Count the events by kind, but for a warning that depends on what else the machine does."""
        kinds = Counter(type(event).__name__ for event in self.received)
        del kinds[events.MachineBusy.__name__]
        return kinds

    def of(self, kind: type[Kind]) -> list[Kind]:
        return [event for event in self.received if isinstance(event, kind)]
