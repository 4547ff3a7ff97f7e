"""The formats of others, a table each, and our own single file."""
