"""One run on several processes: each moves the particles of some of the data, and all move the parameters."""
