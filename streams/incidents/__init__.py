"""Signals to incidents, what people do with them, and the client for alert consumers."""

from streams.incidents.consumer import AlertConsumer, DeadAlert, Delivery, Lag

__all__ = ["AlertConsumer", "DeadAlert", "Delivery", "Lag"]
