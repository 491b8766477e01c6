"""Mitigations after a test: adversarial training, input pre-processing, an ensemble, each measured before and after."""
