"""Times of steps, layers, predictions and imports, each a command of its own."""
