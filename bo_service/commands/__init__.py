"""The groups of commands behind `bo`."""
