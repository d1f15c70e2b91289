"""The load: requests sent, arrivals stamped, records made."""
