"""Model families, and how their checkpoints are opened, loaded and placed on devices."""
