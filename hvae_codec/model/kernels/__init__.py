"""Fast paths of the model on CPUs."""
