"""Benchmarks: each prints a table and ends in one JSON line. Absolute times mean something on an idle machine only.

python -m jobs.bench prefill --shape llava-video-7b     # vision, merge and prefill: full, 50 %, 30 % of the tokens
python -m jobs.bench store --store URL                  # writing and reading a KV cache against a raw copy
python -m jobs.bench answer --shape llava-video-7b      # first token by tier, 64 questions together, a decode step
python -m jobs.bench pipeline                           # the index job against its slowest stage; --gpus 1,2,4
python -m jobs.bench schemes                            # what each KV scheme loses, on the built-in model
"""

from jobs.benchmark.answer import bench_answer
from jobs.benchmark.pipeline import bench_pipeline
from jobs.benchmark.prefill import bench_prefill
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
    )


if __name__ == "__main__":
    command()
