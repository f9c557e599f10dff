"""Looking at a model: its loss, its embedding, its pictures, runs side by side."""
