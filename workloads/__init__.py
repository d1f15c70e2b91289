"""What is asked: whole (prompt, output) length pairs, and the prompts made from them."""
