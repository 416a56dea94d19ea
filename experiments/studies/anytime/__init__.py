"""The study of anytime nets: which method trains them best."""
