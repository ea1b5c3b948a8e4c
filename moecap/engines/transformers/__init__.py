"""All that knows Transformers as an engine: static batches, and how its routers are read."""
