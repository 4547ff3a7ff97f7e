"""Safe readers of tensor files, which execute nothing and bound memory."""
