"""Reports into minimal sentences: by rules, by a language model behind an endpoint, or by one run in batches."""
