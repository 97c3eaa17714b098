"""The base class of all settings. They are frozen, and an unknown key is an error that suggests a known one.

Each subclass of `Settings` stands beside the code that reads it; `sttm.config` puts them together.
"""

import difflib
from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator


class Settings(BaseModel):
    """A frozen group of settings. An unknown key is an error that suggests the most similar known key."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    @model_validator(mode="before")
    @classmethod
    def _suggest_nearest(cls, data: Any) -> Any:
        if isinstance(data, dict):
            for key in data:
                if key not in cls.model_fields:
                    near = difflib.get_close_matches(str(key), cls.model_fields, n=1)
                    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(cls.model_fields)}"
                    raise ValueError(f"unknown setting {key!r} in {cls.__name__}; {hint}")
        return data
