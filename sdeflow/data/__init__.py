"""Image data sets: fetched, checked, read."""
