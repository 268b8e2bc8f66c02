"""Images as sources: folders, arrays, splits."""
