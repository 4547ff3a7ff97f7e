"""Work directories: what a run wrote, and how it goes on from there."""
