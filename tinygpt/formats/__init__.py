"""Files: what a model and a run are kept in."""
