"""The benchmarks behind `jobs.bench`, one file each."""
