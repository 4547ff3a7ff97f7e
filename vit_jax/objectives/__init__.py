"""Objectives: the losses that a training step minimises."""
