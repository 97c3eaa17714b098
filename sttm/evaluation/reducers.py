"""What is compared: a method of merging, with settings of its own, at one budget.

sttm                                    the configured settings
sttm[variant=reference,links=all]       two settings of the merge changed
sttm[merge_layer=0]                     a setting of the prefill changed
none[kv_scheme=int8]                    all tokens, asked through an encoded and decoded cache
sttm[spatial_threshold=.8,temporal_threshold=.6]   thresholds in place of the budgets: one row
"""

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args

import yaml
from pydantic import ValidationError

from sttm.config import IndexConfig
from sttm.engine.prefill import PrefillConfig
from sttm.errors import ConfigError
from sttm.merging import MergeConfig
from sttm.merging.config import Method
from sttm.settings import Settings
from sttm.store.kv.scheme import StoreConfig

FULL = "none"
_TARGETS = ("budget", "tokens", "spatial_threshold", "temporal_threshold")
_GROUPS: dict[str, type[Settings]] = {"merge": MergeConfig, "prefill": PrefillConfig, "store": StoreConfig}
_GROUP_OF = {key: group for group, kind in _GROUPS.items() for key in kind.model_fields if key != "method"}
_SPEC = re.compile(r"([A-Za-z_]+)(?:\[(.*)\])?")


@dataclass(frozen=True)
class Reducer:
    """One line of the comparison.

    Attributes:
        name: the reducer as it was written, without the budget.
        budget: share of the tokens to keep; None where the method keeps all or has a target of its own.
        merge: complete settings of the merge.
        prefill: complete settings of the prefill.
        kv_scheme: the scheme by which the cache is encoded and decoded before it is asked; None asks the live cache.
    """

    name: str
    budget: float | None
    merge: MergeConfig
    prefill: PrefillConfig
    kv_scheme: str | None = None

    @property
    def label(self) -> str:
        return self.name if self.budget is None else f"{self.name} {self.budget:g}"


def parse_reducers(text: str, budgets: Sequence[float], base: IndexConfig) -> list[Reducer]:
    """Read a comma-separated list of reducers.

    Args:
        text: the list, such as `sttm,tome[proportional_attention=false]`.
        budgets: shares of the tokens to keep; each reducer without a target of its own is compared at all of them.
        base: the settings that a reducer does not name. Its budget and its `kv_scheme` are not taken, so that rows
            differ only by what they say.

    Returns:
        All tokens first, then the reducers at all budgets in order, each once.

    Raises:
        ConfigError: a method or setting is unknown, a value is wrong, or a bracket is missing; the message names the
            reducer.
    """
    reducers = [_reducer(FULL, {}, None, base)]
    for spec in _split(text):
        match = _SPEC.fullmatch(spec)
        if not match:
            raise ConfigError(f"reducer {spec!r} is not of the form name or name[setting=value,...]")
        method, overrides = match[1], _overrides(spec, match[2] or "")
        if method not in get_args(Method):
            raise ConfigError(f"reducer {spec!r}: unknown method {method!r}{_near(method, get_args(Method))}")
        has_target = method == FULL or any(key in overrides for key in _TARGETS)
        if not has_target and not budgets:
            raise ConfigError(f"reducer {spec!r} needs --budgets, or a budget, tokens or thresholds in its brackets")
        for budget in [None] if has_target else budgets:
            reducer = _reducer(spec, overrides, budget, base, method)
            if reducer not in reducers:
                reducers.append(reducer)
    return reducers


def _split(text: str) -> list[str]:
    """The parts between those commas that stand outside of brackets."""
    parts, depth = [""], 0
    for char in text:
        depth += (char == "[") - (char == "]")
        if depth not in (0, 1):
            break
        if char == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += char
    if depth:
        raise ConfigError(f"reducers {text!r}: the square brackets do not match")
    return [part.strip() for part in parts if part.strip()]


def _overrides(spec: str, inside: str) -> dict[str, Any]:
    overrides = {}
    for item in filter(None, (part.strip() for part in inside.split(","))):
        key, equals, value = (part.strip() for part in item.partition("="))
        if not equals:
            raise ConfigError(f"reducer {spec!r}: {item!r} is not of the form setting=value")
        if key not in _GROUP_OF:
            raise ConfigError(f"reducer {spec!r}: unknown setting {key!r}{_near(key, list(_GROUP_OF))}")
        try:
            overrides[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ConfigError(f"reducer {spec!r}: {value!r} is not a YAML value") from error
    return overrides


def _reducer(
    name: str, overrides: dict[str, Any], budget: float | None, base: IndexConfig, method: str = FULL
) -> Reducer:
    settings: dict[str, dict[str, Any]] = {
        "merge": base.merge.model_dump(exclude={"method", *_TARGETS}) | {"method": method, "budget": budget},
        "prefill": base.prefill.model_dump(),
        "store": {},
    }
    for key, value in overrides.items():
        settings[_GROUP_OF[key]][key] = value
    try:
        merge = MergeConfig.model_validate(settings["merge"])
        prefill = PrefillConfig.model_validate(settings["prefill"])
        store = StoreConfig.model_validate(settings["store"])
    except ValidationError as error:
        causes = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'settings'}: {_plain(e['msg'])}" for e in error.errors())
        raise ConfigError(f"reducer {name!r} at budget {budget}: {causes}") from error
    return Reducer(name, budget, merge, prefill, store.kv_scheme if "kv_scheme" in overrides else None)


def _plain(message: str) -> str:
    return message.removeprefix("Value error, ")


def _near(word: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(known)}"
