"""Names and classes of millions of images: sequences of texts that hold few bytes per text."""
