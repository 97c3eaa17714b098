"""Runs language models over videos and questions: prefill, generation and scoring, all on KV caches."""
