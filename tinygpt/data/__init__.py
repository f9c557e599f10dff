"""Text to tokens: stories, downloads, large files, and the streams that batches are cut from."""
