"""Conversion of image files to ArrayRecord sets, without TensorFlow."""
