"""The HTTP service that `sttm serve` runs."""
