"""The demo: a real model, real traffic and real attacks on one machine."""
