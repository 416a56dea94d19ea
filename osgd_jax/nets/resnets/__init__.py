"""Anytime ResNets."""
