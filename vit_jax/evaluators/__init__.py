"""What is measured, on a schedule or by command."""
