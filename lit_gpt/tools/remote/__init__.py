"""A model as a Hugging Face folder with its own code: what is cut out of this package, and what is put around it."""
