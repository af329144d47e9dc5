"""Models: loading, scoring, saving."""
