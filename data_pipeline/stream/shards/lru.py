"""What was read last, within a bound: by number (files held open) or by bytes (what was decoded)."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any


class Lru:
    """`get` makes what is not held. Dropping an entry only lets go of it: who still uses it may go on.

    The sum of the entries' weights stays within `limit`; an entry heavier than that is made and not held.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.weight = 0
        self._held: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable, make: Callable[[], Any], weigh: Callable[[Any], int]) -> Any:
        with self._lock:
            if key in self._held:
                self._held.move_to_end(key)
                return self._held[key][0]
        # Outside of the lock: one slow file must not hold up the others. Two threads may both make it.
        value = make()
        weight = weigh(value)
        with self._lock:
            if key not in self._held and weight <= self.limit:
                self._held[key] = (value, weight)
                self.weight += weight
                while self.weight > self.limit:
                    _, (_, dropped) = self._held.popitem(last=False)
                    self.weight -= dropped
        return value

    def __len__(self) -> int:
        return len(self._held)
