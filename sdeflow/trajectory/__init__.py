"""What is kept of a run: snapshots, the dataset, the folder that loses nothing."""
