"""One file a model family, and the TOML files that people run."""
