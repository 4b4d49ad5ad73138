"""Image data sets, and the network of image metrics: fetched, checked, read."""
