"""Deep k-nearest neighbours on the embedding: do the rows whose embedding is most like this one have its class?"""

from __future__ import annotations

from typing import ClassVar

from detectors.contract import Detector
from detectors.embeddings.space import OnEmbedding
from detectors.inputs.dknn import DeepNeighbours


class EmbeddingNeighbours(OnEmbedding):
    """`DeepNeighbours` on embeddings, standardised by those of the reference.

    With `dknn` beside it both layers that events carry are looked at: the input and the embedding. Their p-values are
    fused where all detectors' are, in place of the paper's sum over layers.

    Blind to: events without an embedding; adversarial inputs whose embedding lies deep inside the region of the class
    that the model says.

    References
    ----------
    Papernot & McDaniel, "Deep k-Nearest Neighbors: Towards Confident, Interpretable and Robust Deep Learning", 2018,
    equations 1 and 2.
    """

    name = "embedding_dknn"
    inner: ClassVar[type[Detector]] = DeepNeighbours
    #: Its frame is asked for scales alone.
    reference_rows: ClassVar[int] = 1
