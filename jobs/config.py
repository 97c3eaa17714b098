"""The settings file of the jobs: what an index holds, and how a run goes. Imports no Ray.

python -m jobs.config show --config configs/tiny.yaml --set merge.budget=0.5    # every value, and where it is from
"""

from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from pydantic import BaseModel, Field
from rich.console import Console
from rich.table import Table
from rich.text import Text

from jobs.command import run
from sttm.config import IndexConfig, load_config
from sttm.settings import Settings


class RunConfig(Settings):
    """How the job runs; nothing here changes what is stored.

    Attributes:
        gpus: how many to use, one not there yet included; default those the cluster has when the job starts. Say it
            where an autoscaler adds GPUs on demand.
        gpus_per_model: GPUs of one prefill actor; ignored where the cluster has none.
        in_flight: videos an actor holds at one time: one on its GPU, others on their way to it or to the store.
        decode_ahead: videos decoded or being decoded ahead of each actor.
        decode_ahead_bytes: bytes of decoded videos waiting at one time, over all actors.
        decode_timeout_s: a decode that takes longer is killed and counts as a crash.
        decode_memory_bytes: a decode that allocates more fails and counts as a crash; no other process suffers.
        prefill_timeout_s: the same for vision tower and prefill.
        crash_tries: how often a video may kill its process before it becomes an error row.
        lost_tries: how often a video is tried again after nodes or objects were lost.
        max_failed_share: the job's exit code says so when a larger share of the videos failed.
    """

    gpus: int | None = Field(default=None, ge=0)
    gpus_per_model: int = Field(default=1, ge=1)
    in_flight: int = Field(default=3, ge=1)
    decode_ahead: int = Field(default=8, ge=1)
    decode_ahead_bytes: int = Field(default=4 << 30, ge=0)
    decode_timeout_s: float = Field(default=300.0, gt=0)
    decode_memory_bytes: int = Field(default=8 << 30, ge=1)
    prefill_timeout_s: float = Field(default=600.0, gt=0)
    crash_tries: int = Field(default=3, ge=1)
    lost_tries: int = Field(default=8, ge=1)
    max_failed_share: float = Field(default=0.5, ge=0)


class JobConfig(IndexConfig):
    """The settings file of `jobs.index`; other jobs read the parts they need."""

    run: RunConfig = RunConfig()

    @property
    def index(self) -> IndexConfig:
        """The part that decides what is stored."""
        return IndexConfig.model_validate(self.model_dump(exclude={"run"}))


def show(
    config: Annotated[str, typer.Option(help="YAML settings")] = "configs/tiny.yaml",
    set_: Annotated[list[str] | None, typer.Option("--set", help="override, such as merge.budget=0.5")] = None,
) -> None:
    """Print every setting that would be in force, and where its value comes from."""
    table = Table("setting", "value", "from")
    for name, value, source in effective(config, set_ or []):
        table.add_row(*map(Text, (name, str(value), source)))
    Console().print(table)


def effective(config: str, overrides: list[str]) -> list[tuple[str, Any, str]]:
    """Each setting's dotted name, its value, and `default`, the file, `preset=...` or the override it comes from."""
    loaded = load_config(JobConfig, config, overrides)
    data = yaml.safe_load(Path(config).read_text("utf-8")) or {}
    presets = data.pop("presets", {})
    sources = dict.fromkeys(_leaves(data), config)
    for override in overrides:
        name, _, value = override.partition("=")
        if name == "preset":
            sections = presets[value]
            sources = {k: v for k, v in sources.items() if k.split(".")[0] not in sections}
            sources |= dict.fromkeys(_leaves(sections), override)
    sources |= {o.partition("=")[0]: f"--set {o}" for o in overrides if not o.startswith("preset=")}
    return [(name, value, sources.get(name, "default")) for name, value in _leaves(loaded).items()]


def _leaves(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted names of all values in nested settings or mappings."""
    fields = tree if isinstance(tree, dict) else {name: getattr(tree, name) for name in type(tree).model_fields}
    found: dict[str, Any] = {}
    for name, value in fields.items():
        is_section = isinstance(value, dict | BaseModel)
        found |= _leaves(value, f"{prefix}{name}.") if is_section else {f"{prefix}{name}": value}
    return found


def command() -> None:
    """Entry point."""
    run(is_group=True, show=show)


if __name__ == "__main__":
    command()
