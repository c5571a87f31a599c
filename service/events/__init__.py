"""What happens to jobs, told to whoever listens."""
