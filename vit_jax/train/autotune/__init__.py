"""The choice of an attention formulation, by trying it on the devices at hand."""
