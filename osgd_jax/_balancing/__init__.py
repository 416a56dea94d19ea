"""Task gradients to one update."""
