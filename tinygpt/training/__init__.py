"""Training: the step, the run and its folder, and how fast both are."""
