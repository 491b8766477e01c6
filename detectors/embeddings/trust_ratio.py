"""Trust ratio on the embedding: is it nearer to those of another class than to those of the one the model says?"""

from __future__ import annotations

from typing import ClassVar

from detectors.contract import Detector
from detectors.embeddings.space import OnEmbedding
from detectors.inputs.trust_ratio import TrustRatio


class EmbeddingTrustRatio(OnEmbedding):
    """`TrustRatio` on embeddings, standardised by those of the reference.

    The paper takes it on hidden layers of networks, too: in inputs of many dimensions distances say little, while a
    layer near the answer has been trained to bring rows of a class together.

    Blind to: events without an embedding; adversarial inputs whose embedding lies deep inside the region of the class
    that the model says, as a strong attack on the model brings about.

    References
    ----------
    Jiang, Kim, Guan & Gupta, "To Trust Or Not To Trust A Classifier", NeurIPS 2018, sections 3 and 5.
    """

    name = "embedding_trust_ratio"
    inner: ClassVar[type[Detector]] = TrustRatio
