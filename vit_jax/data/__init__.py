"""Host side of the input: from files to batches of uint8, with numpy only."""
