"""Data sets of every kind behind one protocol: facts for planning, and examples."""
