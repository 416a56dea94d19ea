"""Anytime Transformers."""
