"""The model: its configuration, the recipes, the transformer, and how it writes."""
