"""Exported nets behind HTTP, and what anytime nets are worth under load."""
