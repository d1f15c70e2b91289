"""What was learnt: a function of the run directory."""
