"""Training of the built-in model: its architecture, its data and the training loop."""
