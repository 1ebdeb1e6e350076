"""Text to token windows, and statistics of activations at a site."""
