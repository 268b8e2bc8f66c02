"""Images as sources: folders, archives, arrays, splits."""
