"""Benchmarks of speed and of what quantised caches lose. Each prints a table and ends with one line of JSON.

    python -m jobs.bench prefill --shape llava-video-7b     vision tower, merge and prefill of one video
    python -m jobs.bench answer --shape llava-video-7b      time to the first token, and many questions at once
    python -m jobs.bench pipeline                           videos per second of the index job
    python -m jobs.bench store --store URL                  writing and reading a stored cache
    python -m jobs.bench schemes                            what each KV scheme loses
    python -m jobs.bench scale                              what a store of very many videos costs

Times can be compared only if the machine had no other work. jobs/benchmark/RESULTS.md has measured results and explains
the columns.
"""

from jobs.benchmark.answer import bench_answer
from jobs.benchmark.pipeline import bench_pipeline
from jobs.benchmark.prefill import bench_prefill
from jobs.benchmark.scale import bench_scale
from jobs.benchmark.schemes import bench_schemes
from jobs.benchmark.store import bench_store
from jobs.command import run


def command() -> None:
    """Entry point."""
    run(
        __doc__,
        prefill=bench_prefill,
        pipeline=bench_pipeline,
        answer=bench_answer,
        store=bench_store,
        schemes=bench_schemes,
        scale=bench_scale,
    )


if __name__ == "__main__":
    command()
