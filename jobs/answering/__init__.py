"""The answer job: a table of questions about stored videos, answered on Ray."""
