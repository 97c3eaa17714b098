"""Artifacts of indexed videos in local or object storage: `store.py` opens them, the other files are its parts."""
