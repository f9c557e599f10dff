"""A run as one HTML file with the model alive in it: page.py makes it, of the files beside it."""
