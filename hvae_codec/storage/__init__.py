"""Files, folders and buckets: what can be read, written at once and kept."""
