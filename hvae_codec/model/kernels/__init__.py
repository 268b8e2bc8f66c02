"""Passes that save memory and time; on CPUs in blocks that fit into the cache."""
