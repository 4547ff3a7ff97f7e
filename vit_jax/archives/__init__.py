"""Archives of unknown origin: .npz and other zip files, written and read safely."""
