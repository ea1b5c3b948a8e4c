"""All that knows vLLM: the timed engine, its schedulers, its launcher over nodes, and how its routers are read."""
