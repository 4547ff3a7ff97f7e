"""Chooses the attention formulation by trying it on the devices at hand."""
