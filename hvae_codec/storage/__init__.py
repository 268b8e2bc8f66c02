"""Files, folders and buckets: what can be read, written at once whole, and locked."""
