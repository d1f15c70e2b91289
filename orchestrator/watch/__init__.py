"""What is watched while the load runs: the card, the host, the engine."""
