"""Images to stored latents and back: codecs, the closed-loop coder, the store, the pipeline."""
