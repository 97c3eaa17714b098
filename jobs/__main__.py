"""The `sttm` command: `sttm <name> ...` runs `jobs.<name>`, which is imported only when it is asked for."""

import difflib
import importlib
import sys
from importlib.metadata import PackageNotFoundError, version

COMMANDS = {
    "index": "read a corpus of videos into a store of KV caches, on Ray",
    "ask": "ask questions about one stored video",
    "answer": "answer a table of questions about stored videos, on Ray",
    "serve": "answer over HTTP: an OpenAI-compatible API and a web page",
    "store": "list, verify and clean a store; export or remove videos",
    "explain": "say why a video is, or is not, in a store under some settings",
    "config": "show every setting and where its value comes from",
    "evaluate": "measure how much accuracy is kept, on the built-in or another benchmark",
    "bench": "measure speed: prefill, answers, the index job, the store",
    "demo": "index a small corpus and ask about it, with the built-in model",
    "train_tiny": "train the built-in model again, on GPUs",
}
_EXAMPLES = """\
Examples:
  sttm index --corpus videos/ --store /data/store
  sttm ask --store /data/store --video clip.mp4 "What colour is the ball?"
  sttm serve --store /data/store

`sttm <command> --help` explains one command; `sttm --version` prints the version."""


def main() -> None:
    """Run the command named by the first argument."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name == "--version":
        print(f"sttm {_version()}")
        sys.exit(0)
    if name not in COMMANDS:
        _explain_and_exit(name)
    sys.argv = [f"sttm {name}", *sys.argv[2:]]
    try:
        importlib.import_module(f"jobs.{name}").command()
    except KeyboardInterrupt:  # while the command's packages are imported
        sys.exit(130)


def _explain_and_exit(name: str) -> None:
    lines = [f"  {command:11} {what}" for command, what in COMMANDS.items()]
    usage = "\n".join(["usage: sttm <command> [options]", "", "Commands:", *lines, "", _EXAMPLES])
    if name in ("-h", "--help"):
        print(usage)
        sys.exit(0)
    near = difflib.get_close_matches(name, COMMANDS, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    print(f"error: no command {name!r}{hint}\n\n{usage}", file=sys.stderr)
    sys.exit(2)


def _version() -> str:
    try:
        return version("sttm")
    except PackageNotFoundError:
        return "(a checkout that is not installed)"


if __name__ == "__main__":
    main()
