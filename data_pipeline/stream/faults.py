"""How many bad pictures a run may meet before it is the data, not the picture, that is wrong."""

from collections import deque

from data_pipeline.errors import DataError

IN_A_ROW = 100
WINDOW = 1000
SHARE = 0.05


class Faults:
    """Counts decoded pictures. Stops the run at 100 bad ones in a row, or above 5% of the last 1000."""

    def __init__(self) -> None:
        self._window: deque[bool] = deque(maxlen=WINDOW)
        self._bad = 0
        self._in_a_row = 0

    def good(self) -> None:
        self._in_a_row = 0
        self._push(False)

    def bad(self, sample_id: str, reason: str) -> None:
        """Count one. Raises DataError where they are too many."""
        self._in_a_row += 1
        self._push(True)
        full = len(self._window) == WINDOW
        if self._in_a_row >= IN_A_ROW or (full and self._bad > SHARE * WINDOW):
            raise DataError(
                f"{self._bad} of the last {len(self._window)} pictures cannot be decoded "
                f"({self._in_a_row} in a row), the last one in sample {sample_id}: {reason}.\n"
                f"  Look at the dataset:  fovea data verify DIR"
            )

    def _push(self, bad: bool) -> None:
        if len(self._window) == WINDOW:
            self._bad -= self._window[0]
        self._window.append(bad)
        self._bad += bad
