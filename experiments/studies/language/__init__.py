"""The study of nested Transformers on text."""
