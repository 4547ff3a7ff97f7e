"""Evaluators: measurements of a model, on a schedule or by command."""
