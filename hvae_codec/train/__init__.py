"""Training: the loop, its schedules, its optimiser and its resumable state."""
