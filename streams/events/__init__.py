"""Inference events: one columnar batch, and a codec for each wire format (docs/formats.md)."""

from __future__ import annotations

from importlib.metadata import entry_points

from detectors.kernels import siphash
from detectors.schema import FeatureSchema
from streams.config import ModelSettings, WorkerSettings
from streams.errors import ConfigError
from streams.events.auto import AutoCodec
from streams.events.batch import Codec, DecodeOptions
from streams.events.compact import CompactCodec
from streams.events.kernels import NATIVE, OIP
from streams.events.kernels import warm_up as warm_up_kernels
from streams.events.native import NativeCodec
from streams.events.oip import OipCodec

_OWN: dict[str, type[Codec]] = {
    "auto": AutoCodec,
    "native": NativeCodec,
    "oip": OipCodec,
    "compact": CompactCodec,
}


def formats() -> list[str]:
    """Every registered format: Vedette's own, and those that entry points of the group ``vedette.codecs`` add."""
    return sorted({*_OWN, *(point.name for point in entry_points(group="vedette.codecs"))})


def decoder(format: str) -> Codec:  # noqa: A002  (the setting's name)
    """The codec of a format: ``auto``, ``native``, ``oip``, ``compact``, or a registered one.

    Raises
    ------
    ConfigError
        Names the formats that there are.
    """
    if format in _OWN:
        return _OWN[format]()
    for point in entry_points(group="vedette.codecs"):
        if point.name == format:
            found: Codec = point.load()()
            return found
    raise ConfigError(f"no format is called {format!r}; there are {', '.join(formats())}")


def options_for(
    model: ModelSettings, worker: WorkerSettings, schema: FeatureSchema, client_key: bytes
) -> DecodeOptions:
    """What a codec needs to know, from the settings: whoever reads the topic refuses the same records."""
    return DecodeOptions(model.name, schema, model.client, client_key, worker.max_record_bytes, worker.max_record_rows)


def warm_up(format: str, schema: FeatureSchema | None = None) -> None:  # noqa: A002
    """Compile what the codec of a format needs, or load it from the cache, so that its first decode does not wait.

    What reads embeddings only where the schema states them.
    """
    siphash.warm_up()
    embedding = schema is not None and schema.embedding_width is not None
    warm_up_kernels({"native": NATIVE, "oip": OIP, "auto": NATIVE | OIP}.get(format, 0), embedding)
