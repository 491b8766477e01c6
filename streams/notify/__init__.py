"""Notifications: who is told of which incident, and how each destination wants to hear it."""

from streams.notify.contract import Answer, Call, Notifier, Outcome

__all__ = ["Answer", "Call", "Notifier", "Outcome"]
