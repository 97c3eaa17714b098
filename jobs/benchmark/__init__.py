"""The benchmarks of the command `bench`, and the videos, models and clocks that they share."""
