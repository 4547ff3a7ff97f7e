"""Writes image files as ArrayRecord sets, without TensorFlow."""
