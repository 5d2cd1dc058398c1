"""What attention costs, measured beside peers in the same run."""
