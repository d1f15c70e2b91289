"""A run in the formats of others: tables for notebooks, and the files that other tools write."""
