"""From TOML or Python to a Run, checked before anything is computed."""
