"""Which source the next draw takes: proportions that hold at every moment, not only on average."""

import hashlib
import math
from collections.abc import Mapping

from data_pipeline.errors import ConfigError


class Mixture:
    """Draws from sources in proportion to their weights.

    After any number k of draws each source was taken within 1 of `k * share` (R. Tijdeman, "The chairman
    assignment problem", 1980). The choice depends on the counts so far and nothing else; the seed decides
    between equals.
    """

    def __init__(self, weights: Mapping[str, float], seed: int) -> None:
        if not weights:
            raise ConfigError("the mixture is empty: name at least one source")
        for name, weight in weights.items():
            if not (math.isfinite(weight) and weight > 0):
                raise ConfigError(f"mixture: weight {weight} of source '{name}' must be above 0")
        total = math.fsum(weights.values())
        tie = {n: hashlib.blake2b(f"{seed}/{n}".encode(), digest_size=8).digest() for n in weights}
        self.shares = {n: weights[n] / total for n in sorted(weights, key=tie.__getitem__)}

    def next(self, counts: Mapping[str, int]) -> str:
        """The source of the next draw after `counts` draws of each."""
        if len(self.shares) == 1:
            return next(iter(self.shares))
        k = sum(counts[name] for name in self.shares) + 1
        slack = 1 / (2 * len(self.shares) - 2)
        best, best_deadline = None, math.inf
        for name, share in self.shares.items():
            owed = share * k - counts[name]
            deadline = (1 - slack - owed) / share  # draws until this source would fall too far behind
            # The tolerance keeps an exact tie of sums from leaving nobody to choose.
            if owed >= slack - 1e-6 and deadline < best_deadline:
                best, best_deadline = name, deadline
        return best or max(self.shares, key=lambda n: self.shares[n] * k - counts[n])
