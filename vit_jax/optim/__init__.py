"""What turns gradients into updates: schedules, the chain, the guard."""
