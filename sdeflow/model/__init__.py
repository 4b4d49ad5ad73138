"""What a user writes, a log-joint or an energy, and the forces that it gives."""
