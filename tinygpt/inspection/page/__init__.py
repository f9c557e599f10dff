"""A run as one HTML file with the model alive in it."""
