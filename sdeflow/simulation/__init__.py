"""Takes a Run through its steps, and says how it ended."""
