"""Whether a store is whole, and repair of what needs neither images nor a model."""
