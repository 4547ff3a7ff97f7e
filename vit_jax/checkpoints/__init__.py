"""Work directories: the files that a run writes and continues from."""
