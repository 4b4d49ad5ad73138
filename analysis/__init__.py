"""What is measured on trajectories, and the runnable scripts."""
