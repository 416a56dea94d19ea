"""The study of Orthogonalized SGD: where it helps, by how much, and why."""
