"""Formulations of attention, and which of them suits a device."""
