"""Perplexity by source: e to the mean loss of a token.

All tokens weigh alike, so a long document counts for more.
"""

from collections.abc import Hashable, Sequence

import numpy as np

from trainer.evaluation.intervals import Array, Scored, ratio


def score_perplexity(
    nats: Sequence[float], tokens: Sequence[float], sources: Sequence[str], units: Sequence[Hashable]
) -> Scored:
    """`nats[i]`: the loss of document i summed over its `tokens[i]` tokens."""
    names = sorted(set(sources))
    column = {name: i for i, name in enumerate(names)}
    # Two sums for each source: nats, tokens.
    terms = np.zeros((len(nats), 2 * len(names)))
    for i, source in enumerate(sources):
        terms[i, 2 * column[source]], terms[i, 2 * column[source] + 1] = nats[i], tokens[i]

    def of_sums(sums: Array) -> dict[str, Array]:
        loss, count = sums[..., 0::2], sums[..., 1::2]
        each = np.exp(np.divide(loss, count, out=np.full_like(loss, np.nan), where=count > 0))
        return {
            "perplexity": np.exp(ratio(loss.sum(axis=-1), count.sum(axis=-1))),
            **{f"per_source/{name}": each[..., i] for name, i in column.items()},
        }

    whole = {name: float(value) for name, value in of_sums(terms.sum(axis=0)).items()}
    values = {
        "perplexity": whole["perplexity"],
        "per_source": {name: whole[f"per_source/{name}"] for name in names},
    }
    return Scored(values, terms, units, of_sums)
