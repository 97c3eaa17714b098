"""The index job: videos of a corpus decoded, prefilled and stored on Ray."""
