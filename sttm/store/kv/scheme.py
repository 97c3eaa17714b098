"""How keys and values can be stored: a table of schemes, and the setting that picks one."""

from dataclasses import dataclass
from typing import Literal

from sttm.settings import Settings

KVScheme = Literal["exact", "int8", "k8v4", "int4"]


@dataclass(frozen=True)
class Scheme:
    """Bits and grouping of one scheme. Every group of numbers has one fp16 scale and one fp16 zero.

    Attributes:
        key_bits: bits a key number takes; 0 in `exact`, which keeps the cache's own dtype.
        key_group: consecutive tokens that share a scale, per key channel. Channels, because a few key channels
            carry a bias hundreds of times larger than the rest.
        value_bits: bits a value number takes; 0 in `exact`.
        value_group: consecutive channels of one token and head that share a scale; 0, or a number that does not
            divide head_dim, for all of them.
        keeps_text: whether the text around the video keeps the cache's own dtype.
    """

    key_bits: int
    key_group: int
    value_bits: int
    value_group: int
    keeps_text: bool


SCHEMES: dict[str, Scheme] = {
    "exact": Scheme(key_bits=0, key_group=0, value_bits=0, value_group=0, keeps_text=False),
    "int8": Scheme(key_bits=8, key_group=128, value_bits=8, value_group=0, keeps_text=False),
    "k8v4": Scheme(key_bits=8, key_group=128, value_bits=4, value_group=32, keeps_text=False),
    "int4": Scheme(key_bits=4, key_group=64, value_bits=4, value_group=64, keeps_text=True),
}


class StoreConfig(Settings):
    """How the artifacts of a run are stored.

    Attributes:
        kv_scheme: `exact` keeps every bit of the cache; `int8` (default) halves a bf16 cache; `k8v4` and `int4`
            are smaller and lose more.
        kv_scheme_below: scheme of the layers below the merge, which hold every token; None takes the same scheme.
    """

    kv_scheme: KVScheme = "int8"
    kv_scheme_below: KVScheme | None = None
