"""The `sttm` command: `sttm <job> ...` runs `jobs.<job>`. A job is imported only when it is asked for."""

import importlib
import sys

JOBS = {
    "index": "read a corpus of videos into a store of KV caches",
    "ask": "ask one question about a stored video",
    "bench": "time prefill, merge and store",
    "config": "show every setting and where its value comes from",
    "explain": "why a video is, or is not, in a store under some settings",
    "store": "list, verify and clean a store, remove videos from it",
    "evaluate": "measure how much accuracy reducers keep, on the built-in or any other benchmark",
    "answer": "answer a table of questions about stored videos, on Ray",
    "serve": "serve a store over HTTP: an OpenAI-compatible API and a web page",
    "demo": "index a small corpus and ask about it, with the built-in model",
}


def main() -> None:
    """Run the job named by the first argument."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name not in JOBS:
        is_help = name in ("-h", "--help")
        lines = [f"  {job:10} {what}" for job, what in JOBS.items()]
        text = "\n".join(["usage: sttm <job> [options]   (sttm <job> --help)", "", *lines])
        print(text if is_help else f"error: no job {name!r}\n\n{text}", file=sys.stdout if is_help else sys.stderr)
        sys.exit(0 if is_help else 2)
    sys.argv = [f"sttm {name}", *sys.argv[2:]]
    importlib.import_module(f"jobs.{name}").command()


if __name__ == "__main__":
    main()
