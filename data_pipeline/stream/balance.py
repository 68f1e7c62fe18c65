"""Which rank takes which rows of a global batch, so that no rank waits long for another.

Longest processing time first (R. L. Graham, "Bounds on multiprocessing timing anomalies", 1969), with the
same number of rows for everyone: the heaviest row left goes to the lightest rank that has a place.
"""

import heapq

import numpy as np

from data_pipeline.errors import ConfigError


def assign(tokens: np.ndarray, patches: np.ndarray, world_size: int, micro_rows: int) -> np.ndarray:
    """int64[world_size, micro-batches, micro_rows]: row numbers, each once.

    `tokens`, `patches`: int64[rows], what each row holds. Packed rows hold about as many tokens, so patches
    decide and tokens break ties. Micro-batches of a rank are even where they have several rows; the heavier
    ones come first, on every rank, for ranks may wait for one another after each.
    """
    rows = len(tokens)
    if rows == 0 or rows % (world_size * micro_rows):
        raise ConfigError(
            f"a global batch of {rows} rows is no multiple of world_size ({world_size}) x "
            f"micro_rows ({micro_rows})"
        )
    cost = list(zip(patches.tolist(), tokens.tolist(), strict=True))
    micro_batches = rows // (world_size * micro_rows)
    by_rank = _spread(list(range(rows)), cost, world_size)
    assigned = []
    for mine in by_rank:
        batches = _spread(mine, cost, micro_batches)
        assigned.append(sorted(batches, key=lambda batch: sum(cost[r][0] for r in batch), reverse=True))
    return np.array(assigned, np.int64)


def _spread(rows: list[int], cost: list[tuple[int, int]], bins: int) -> list[list[int]]:
    """The rows in `bins` of equal number and about equal cost."""
    places = len(rows) // bins
    if bins == 1:
        return [rows]
    filled: list[list[int]] = [[] for _ in range(bins)]
    lightest = [(0, 0, b) for b in range(bins)]
    for row in sorted(rows, key=cost.__getitem__, reverse=True):  # stable: equals keep their order
        patches, tokens, b = lightest[0]
        filled[b].append(row)
        if len(filled[b]) < places:
            heapq.heapreplace(lightest, (patches + cost[row][0], tokens + cost[row][1], b))
        else:
            heapq.heappop(lightest)
    return filled
