"""Losses to task gradients."""
