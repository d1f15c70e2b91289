"""What is started: every serving stack as a value."""
