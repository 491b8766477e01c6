"""Campaigns against a model: which attacks fool it, how often, within which distance, and whether anybody would see."""
