"""Formulations of attention, and the choice of one that suits the device."""
