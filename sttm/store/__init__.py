"""Artifacts of indexed videos in local or object storage. `store.py` opens a store; FORMAT.md describes the format."""
