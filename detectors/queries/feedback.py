"""Do later queries follow the answers to earlier ones? What attackers by questions must do, and repeaters don't.

Blind to: attackers whose next queries don't depend on the answers, as where rows are drawn beforehand or crafted on a
surrogate; those who wait longer than `REACH` rows before they use an answer; clusters of few pairs or of one answer.

References
----------
Vedette's own method. The attacks whose moves it follows: SimBA (Guo et al., ICML 2019), Square (Andriushchenko, Croce,
Flammarion & Hein, ECCV 2020), NES (Ilyas et al., ICML 2018), HopSkipJump (Chen, Jordan & Wainwright, IEEE S&P 2020).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from detectors.kernels import feedback as kernels

#: Rows before and after a query that tell where its client was and where it goes; after, where answers alone count.
REACH, ANSWERS_REACH = 32, 16
#: Chance that goes further than so many times the usual, as of a client that drifts, is taken off.
USUAL_CHANCE = 1.65
#: From this share of the rarer side among the later members on, it is unknown which answer is the one to leave.
MIXED_SHARE = 0.25


def feedback(
    products: NDArray[np.float64],
    parent: NDArray[np.int64],
    squared: NDArray[np.float64],
    margins: NDArray[np.float64],
    begun: NDArray[np.bool_],
) -> tuple[float, float]:
    """How clearly the members of a cluster go where the answers to the ones before were better.

    Each row makes a pair with its nearest earlier one. Of the two, an attacker goes on from the one that the model was
    less sure of: a step of SimBA or Square is kept or dropped, NES and HopSkipJump move along the sum of what they saw.
    Which one a client goes on from is a matter of distances, and the better answer one of answers, so neither needs a
    model; who doesn't look at the answers shows no correlation between them but by chance.

    Parameters
    ----------
    products : float64 (m, m)
        Exact inner products of the members in standard form, oldest first.
    parent, squared : (m,)
        Nearest earlier member, and its squared distance.
    margins : float64 (m,)
        Of the class that most of the first members have.
    begun : bool (m,)
        Members with that answer.

    Returns
    -------
    by_scores, by_answers : float
        -sqrt(pairs) times the correlation with differences of margins (less where the client keeps one direction in few
        dimensions), and of answers alone. Positive where the client leaves that answer; where it keeps to both
        sides of the boundary, either direction counts as positive.
    """
    onward, closer = np.empty(len(parent)), np.empty(len(parent))
    chance = float(kernels.leanings(products, parent, squared, REACH, ANSWERS_REACH, onward, closer))
    by_scores = float(kernels.agreement(onward, parent, margins)) / max(1.0, chance / USUAL_CHANCE)
    by_answers = float(kernels.agreement(closer, parent, begun.astype(np.float64)))
    later = begun[len(begun) // 2 :]
    rarer = min(int(later.sum()), len(later) - int(later.sum()))
    if rarer >= MIXED_SHARE * len(later):
        return abs(by_scores), abs(by_answers)
    return by_scores, by_answers
