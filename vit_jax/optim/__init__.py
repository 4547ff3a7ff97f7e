"""Optimisation: learning-rate schedules, parameter groups, the chain, the guard."""
