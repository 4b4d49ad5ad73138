"""Training methods compared on the same images: seeds in pairs, cost in gradient evaluations."""
