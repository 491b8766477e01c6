"""What every client of the watched model agrees on."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray


@runtime_checkable
class Model(Protocol):
    """The watched model, wherever it runs."""

    def predict(self, inputs: NDArray[np.float64]) -> NDArray[np.float64]:
        """Scores float64 (n, k) of rows float64 (n, d), one a class.

        Raises
        ------
        EndpointError
            When no answer comes, or one that is no scores of these rows.
        """
