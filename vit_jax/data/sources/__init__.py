"""Data sets of every kind behind one protocol: facts to plan with, and examples."""
