"""Turns a stored video into a cache that transformers' own `forward` and `generate` take."""

from typing import Any

from sttm.engine.ready_video import ReadyVideo


def hugging_face_cache(video: ReadyVideo) -> Any:
    """A `transformers.DynamicCache` of one row that holds the video, with rotated keys.

    The caller must pass `position_ids` that start at `video.next_positions`. By itself transformers would take the
    number of cached tokens, which is wrong after a merge and with M-RoPE.

    Raises:
        ValueError: the layers differ in length (`merge_layer` > 0), or attention is proportional. transformers makes
            one mask for all layers and knows no proportional attention.
    """
    from transformers import DynamicCache

    if video.bias is not None:
        raise ValueError(
            "this cache was made with proportional attention, which transformers does not do: "
            "index with prefill.proportional_attention=false"
        )
    lengths = {key.shape[1] for key in video.keys}
    if len(lengths) > 1:
        raise ValueError(
            f"layers below {video.merge_layer} hold {max(lengths)} tokens, the others {min(lengths)}; transformers "
            "needs equal lengths: index with prefill.merge_layer=0"
        )
    cache = DynamicCache()
    for layer, (keys, values) in enumerate(zip(video.keys, video.values, strict=True)):
        cache.update(keys[None].clone(), values[None].clone(), layer)
    return cache
