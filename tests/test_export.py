"""A stored cache gives the same tokens in transformers' own loop as in ours."""

from pathlib import Path

import pytest
import torch
from indexed import index_clips

from sttm.engine.answer import Continuation
from sttm.engine.export import hugging_face_cache
from sttm.engine.ready_video import ready
from sttm.models.checkpoint import Checkpoint, ModelConfig
from sttm.models.language_model import LanguageModel
from sttm.store.store import Store


@pytest.mark.parametrize("merge_layer", [0, 2])
@pytest.mark.filterwarnings("ignore:.*Use `cache` instead:FutureWarning")  # the oldest transformers knows the old name
def test_plain_forward_over_the_exported_cache_equals_ours(
    tmp_path: Path, qwen2_vl_folder: Path, merge_layer: int
) -> None:
    url = index_clips(tmp_path, qwen2_vl_folder, count=1, scheme="exact", merge_layer=merge_layer)
    store = Store.open(url)
    checkpoint = Checkpoint.open(ModelConfig(path=str(qwen2_vl_folder), dtype="float32"))
    full = checkpoint.load_model("cpu")
    model = LanguageModel.of(full)
    video = ready(model, store.load_kv(store.find("clip-0.mp4").identity))
    if merge_layer:
        with pytest.raises(ValueError, match="merge_layer=0"):
            hugging_face_cache(video)
        return
    question = checkpoint.family(with_processor=False).question_ids("What is it?")
    places = torch.arange(len(question)) + video.next_positions[0]
    with torch.inference_mode():
        out = full(
            input_ids=torch.tensor([question]),
            position_ids=places.expand(3, 1, -1),
            past_key_values=hugging_face_cache(video),
        )
    ours = Continuation(model, video, [question], 0).start()
    torch.testing.assert_close(out.logits[:, -1], ours, rtol=1e-4, atol=1e-4)
