"""Numbers in, verdicts out: pure functions, no clock, no socket."""
