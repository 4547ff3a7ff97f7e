"""Estimates the time of a compiled TPU program from the text of the compiler."""
