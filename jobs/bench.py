"""Benchmarks of speed and of what quantised caches lose. Each prints tables and ends with one line of JSON.

    python -m jobs.bench prefill --shape llava-video-7b     vision tower, merge and prefill of one video
    python -m jobs.bench answer --shape llava-video-7b      time to the first token, and many questions at once
    python -m jobs.bench film FOLDER                        videos for the next two, which cost as much as real ones
    python -m jobs.bench decode --film 720p24-h264          CPU seconds of decoding, against a plain decoder
    python -m jobs.bench pipeline --film 720p24-h264        videos per second of the index job
    python -m jobs.bench night                              videos per CPU second of the index job's driver
    python -m jobs.bench frames                             resizing frames, and finding those that look alike
    python -m jobs.bench store --store URL                  writing and reading a stored cache
    python -m jobs.bench schemes                            what each KV scheme loses
    python -m jobs.bench scale                              what a store of very many videos costs

Times can be compared only if the machine had no other work. jobs/benchmark/RESULTS.md has measured results and explains
the columns.
"""

from jobs.benchmark.answer import bench_answer
from jobs.benchmark.decode_cost import bench_decode
from jobs.benchmark.film import bench_film
from jobs.benchmark.frames import bench_frames
from jobs.benchmark.night import bench_night
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
        night=bench_night,
        answer=bench_answer,
        decode=bench_decode,
        film=bench_film,
        frames=bench_frames,
        store=bench_store,
        schemes=bench_schemes,
        scale=bench_scale,
    )


if __name__ == "__main__":
    command()
