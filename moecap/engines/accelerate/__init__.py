"""Accelerate: a model of Transformers whose weights lie partly in host memory or on disk."""
