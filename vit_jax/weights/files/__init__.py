"""Files of tensors, opened safely: nothing is executed, everything is bounded."""
