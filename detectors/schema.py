"""What a model's inputs look like: names, kinds, ranges, groups, image shape."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detectors.errors import SchemaError


@dataclass(frozen=True, slots=True)
class Feature:
    """One input feature.

    `low` and `high` bound legal values (inclusive, `None` for no bound); `integral` values are whole numbers;
    `mutable` says whether an attacker can change it; features that share a `group` are one-hot: exactly one is 1.
    """

    name: str
    low: float | None = None
    high: float | None = None
    integral: bool = False
    mutable: bool = True
    group: str | None = None


@dataclass(frozen=True, slots=True)
class FeatureSchema:
    """The features of a model's input and its classes.

    Attributes
    ----------
    features : tuple of Feature
        In the order of the input's columns.
    classes : tuple of str
        Names of the classes in the order of the output's columns.
    image_shape : (rows, columns) or (rows, columns, channels), optional
        Set where an input is a picture; its product is the number of features.
    embedding_width : int, optional
        Values of the embedding that events carry beside the input; None: embeddings of events are ignored.
    """

    features: tuple[Feature, ...]
    classes: tuple[str, ...]
    image_shape: tuple[int, ...] | None = None
    embedding_width: int | None = None

    def __post_init__(self) -> None:
        if not self.features:
            raise SchemaError("a schema needs at least one feature")
        names = [f.name for f in self.features]
        if len(set(names)) != len(names):
            twice = sorted({n for n in names if names.count(n) > 1})
            raise SchemaError(f"feature names must be unique; given twice: {', '.join(twice[:5])}")
        if len(self.classes) < 2:
            raise SchemaError(f"a schema needs at least two classes, got {len(self.classes)}")
        if len(set(self.classes)) != len(self.classes):
            raise SchemaError(f"classes must have names of their own, got {', '.join(self.classes[:8])}")
        for feature in self.features:
            if feature.low is not None and feature.high is not None and feature.low > feature.high:
                raise SchemaError(f"feature {feature.name!r}: low {feature.low} is above high {feature.high}")
        if self.image_shape is not None and int(np.prod(self.image_shape)) != len(self.features):
            raise SchemaError(
                f"image shape {self.image_shape} holds {int(np.prod(self.image_shape))} values "
                f"but there are {len(self.features)} features"
            )
        if self.embedding_width is not None and (type(self.embedding_width) is not int or self.embedding_width < 1):
            raise SchemaError(f"embedding_width is {self.embedding_width!r}; it must be a whole number from 1 on")

    @property
    def width(self) -> int:
        """Number of features, d."""
        return len(self.features)

    def lows(self) -> NDArray[np.float64]:
        """(d,) lower bounds, -inf where there is none."""
        return np.array([-np.inf if f.low is None else f.low for f in self.features])

    def highs(self) -> NDArray[np.float64]:
        """(d,) upper bounds, +inf where there is none."""
        return np.array([np.inf if f.high is None else f.high for f in self.features])

    def integral(self) -> NDArray[np.bool_]:
        """(d,) which features are whole numbers."""
        return np.array([f.integral for f in self.features])

    def mutable(self) -> NDArray[np.bool_]:
        """(d,) which features an attacker can change."""
        return np.array([f.mutable for f in self.features])

    def groups(self) -> dict[str, NDArray[np.intp]]:
        """Columns of each one-hot group."""
        found: dict[str, list[int]] = {}
        for column, feature in enumerate(self.features):
            if feature.group is not None:
                found.setdefault(feature.group, []).append(column)
        return {name: np.array(columns, dtype=np.intp) for name, columns in found.items()}

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; without `embedding_width` where there is none, so that digests of before stay."""
        found: dict[str, Any] = {
            "features": [
                {
                    "name": f.name,
                    "low": f.low,
                    "high": f.high,
                    "integral": f.integral,
                    "mutable": f.mutable,
                    "group": f.group,
                }
                for f in self.features
            ],
            "classes": list(self.classes),
            "image_shape": None if self.image_shape is None else list(self.image_shape),
        }
        return found if self.embedding_width is None else {**found, "embedding_width": self.embedding_width}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> FeatureSchema:
        """The inverse of `to_dict`; `SchemaError` names a wrong or missing key."""
        try:
            unknown = set(data) - {"features", "classes", "image_shape", "embedding_width"}
            if unknown:
                raise SchemaError(f"unknown key in schema: {', '.join(sorted(unknown))}")
            _check_types(data)
            shape = data.get("image_shape")
            return cls(
                features=tuple(Feature(**feature) for feature in data["features"]),
                classes=tuple(str(name) for name in data["classes"]),
                image_shape=None if shape is None else tuple(int(side) for side in shape),
                embedding_width=data.get("embedding_width"),
            )
        except KeyError as missing:
            raise SchemaError(f"schema lacks the key {missing}") from None
        except TypeError as wrong:
            raise SchemaError(f"schema is malformed: {wrong}") from None

    def digest(self) -> str:
        """Hex digest of the schema's content."""
        canonical = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))
        return hashlib.blake2b(canonical.encode(), digest_size=16).hexdigest()

    @classmethod
    def image(cls, shape: Sequence[int], classes: Sequence[str], low: float = 0.0, high: float = 1.0) -> FeatureSchema:
        """A schema of pixels with one common range."""
        sides = tuple(int(side) for side in shape)
        features = tuple(Feature(f"pixel_{i}", low, high) for i in range(int(np.prod(sides))))
        return cls(features, tuple(classes), sides)


def _check_types(data: Mapping[str, Any]) -> None:
    """Refuse what a hand-written schema may hold in place of text, numbers and truth values."""
    for key in ("features", "classes"):
        if not isinstance(data[key], list | tuple):
            raise SchemaError(f"`{key}` is {data[key]!r}; it must be a list")
    for place, feature in enumerate(data["features"]):
        if not isinstance(feature, Mapping) or not isinstance(feature.get("name"), str):
            raise SchemaError(f'feature {place} is {feature!r}; write an object with its name, as {{"name": "age"}}')
        for key in ("low", "high"):
            bound = feature.get(key)
            number = isinstance(bound, int | float) and not isinstance(bound, bool)
            if bound is not None and (not number or np.isnan(bound)):
                raise SchemaError(f"feature {feature['name']!r}: {key} is {bound!r}; it must be a number or null")
        for key in ("integral", "mutable"):
            if not isinstance(feature.get(key, False), bool):
                raise SchemaError(f"feature {feature['name']!r}: {key} is {feature[key]!r}; it must be true or false")
