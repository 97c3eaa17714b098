"""The verbs: each file is one command, run as `python -m jobs.<name>` or `sttm <name>`."""
