"""Images to stored latents and back: the closed-loop coder, pipeline, append, repair of row groups."""
