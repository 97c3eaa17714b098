"""Answers questions about stored videos from their KV caches."""
