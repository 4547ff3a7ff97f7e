"""The host side of the input: files to batches of uint8, with numpy only."""
