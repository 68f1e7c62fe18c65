"""Which token comes next, the best or one drawn, and where a text ends.

Shapes: B rows, V entries of the vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Decoding:
    """How one prompt is continued.

    `temperature` 0: by the best token each time. Else by one drawn from softmax(scores / temperature) among
    the `top_k` best, and of these among the fewest whose probabilities sum to `top_p`. The draws depend on
    `seed` alone, not on what is decoded beside. The text ends where one of `stop` would begin.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.temperature < 0 or not 0 < self.top_p <= 1 or (self.top_k is not None and self.top_k < 1):
            raise ValueError(
                f"temperature is {self.temperature}, top_p {self.top_p}, top_k {self.top_k}; allowed are at "
                "least 0, above 0 up to 1, and at least 1"
            )
        if "" in self.stop:
            raise ValueError("a stop word is empty: every text has it")


GREEDY = Decoding()


class Chooser:
    """The next token of each row. A row's n-th draw is the n-th number of its own generator."""

    def __init__(self, how: Sequence[Decoding], device: torch.device) -> None:
        def column(values: Sequence[float]) -> torch.Tensor:
            return torch.tensor(values, dtype=torch.float64, device=device)[:, None]

        self._draws = [torch.Generator().manual_seed(h.seed) for h in how]
        self._drawn = column([h.temperature for h in how]) > 0
        self._temperature = column([h.temperature or 1.0 for h in how])
        self._top_k = column([torch.inf if h.top_k is None else h.top_k for h in how])
        self._top_p = column([h.top_p for h in how])
        self._greedy = not bool(self._drawn.any())

    def __call__(self, scores: torch.Tensor) -> torch.Tensor:
        """scores [B, V] -> int64[B]."""
        best = scores.argmax(-1)
        if self._greedy:
            return best
        # On the host, so that every device draws the same.
        numbers = [torch.rand(1, generator=g, dtype=torch.float64) for g in self._draws]
        uniform = torch.stack(numbers).to(scores.device)
        drawn = draw(scores, self._temperature, self._top_k, self._top_p, uniform)
        return torch.where(self._drawn[:, 0], drawn, best)


def draw(
    scores: torch.Tensor,
    temperature: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
    uniform: torch.Tensor,
) -> torch.Tensor:
    """scores [B, V], all else float64[B, 1], `uniform` from 0 to below 1 -> int64[B]: the token at which the
    sum of probabilities, from the best token on, passes `uniform` of their whole."""
    ranked, order = (scores.double() / temperature).sort(dim=-1, descending=True, stable=True)
    places = torch.arange(scores.shape[-1], device=scores.device)
    shares = ranked.masked_fill(places >= top_k, -torch.inf).softmax(-1)
    shares = shares.masked_fill(shares.cumsum(-1) - shares >= top_p, 0)
    reached = shares.cumsum(-1)
    place = (reached <= uniform * reached[:, -1:]).sum(-1, keepdim=True)
    return order.gather(-1, place).squeeze(-1)


def stops(text: str, words: Sequence[str]) -> bool:
    """Whether one of the words stands in `text`."""
    return any(word in text for word in words)


def until_stop(text: str, words: Sequence[str]) -> str:
    """`text` up to where the first of the words begins; all of it where none stands in it."""
    return text[: min((text.find(word) for word in words if word in text), default=len(text))]
