"""Prediction on any number of images: reading them, and writing the results."""
