"""Read a video file and turn it into sampled frames."""
