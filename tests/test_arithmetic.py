"""A store in FP8: what it says of its arithmetic, and that questions are answered in the arithmetic that made it."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

import sttm
from sttm.config import index_recipe, load_index_config
from sttm.corpus.listing import VideoRef
from sttm.engine.answer import Continuation
from sttm.engine.prefill import prefill
from sttm.engine.ready_video import ready
from sttm.errors import ModelError
from sttm.indexer import Indexer, VideoReader
from sttm.kv_cache import KVCache
from sttm.models.checkpoint import Checkpoint
from sttm.models.fp8_linear import Fp8Linear
from sttm.models.language_model import LanguageModel
from sttm.query.checkpoint import newest_checkpoint, require_same_model
from sttm.query.worker import QueryWorker
from sttm.store.key import differences
from sttm.store.store import Store
from sttm.synthetic import render, sample_scenes
from sttm.synthetic.encode import encode_clip


@pytest.fixture(scope="module")
def small(qwen2_vl_folder: Path) -> tuple[str, ...]:
    """Settings of a small model and few frames."""
    return f"model.path={qwen2_vl_folder}", "video.max_frames=4", "store.kv_scheme=exact"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    for number, frames in enumerate(render(sample_scenes(seed=7, count=2, frames=8, size=112)).numpy()):
        (folder / f"clip-{number}.mp4").write_bytes(encode_clip(frames))
    return folder


def indexed(corpus: Path, store: Path, overrides: Sequence[str]) -> Store:
    rows = sttm.index(corpus, store, "tiny", overrides)
    assert [row.status for row in rows] == ["ok", "ok"]
    return Store.open(str(store))


@pytest.fixture(scope="module")
def in_fp8(corpus: Path, small: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Store:
    return indexed(corpus, tmp_path_factory.mktemp("fp8") / "store", [*small, "model.dtype=fp8"])


def test_every_artifact_of_a_run_says_what_fp8_changed_on_its_first_video(in_fp8: Store) -> None:
    first, second = (in_fp8.manifest(row.identity) for row in in_fp8.catalog.rows())
    found = first.facts.arithmetic
    assert found is not None
    assert found == second.facts.arithmetic
    assert (found.reference, found.video, found.compared) == ("bfloat16", first.content_digest, 3 * 4)
    assert 0 < found.kl_mean < 0.1
    assert found.kl_mean <= found.kl_max
    assert ("compare" in first.facts.timings_s, "compare" in second.facts.timings_s) == (True, False)
    assert first.recipe["model"]["dtype"] == "fp8"


def test_the_divergence_is_that_between_two_whole_models(corpus: Path, small: tuple[str, ...], in_fp8: Store) -> None:
    """The bfloat16 model reads the video and answers; the FP8 model reads it, too, and is fed the same answers."""
    config = load_index_config("tiny", [*small, "model.dtype=fp8"])
    checkpoint = newest_checkpoint(in_fp8)
    family, decoded = checkpoint.family(), VideoReader(config).read(VideoRef.from_uri(str(corpus / "clip-0.mp4")))
    probe, logits, tokens = family.question_ids(config.fidelity.probes[0]), [], torch.empty(0)
    for with_fp8 in (False, True):
        model = checkpoint.load_model("cpu", with_fp8=with_fp8)
        text = LanguageModel.of(model)
        cache = prefill(text, family.prompt(model, decoded.inputs), config.merge, config.prefill).cache
        steps = continued(text, cache, probe, None if not with_fp8 else tokens.tolist())
        logits.append(steps.double().log_softmax(-1))
        tokens = steps.argmax(-1)
    kl = (logits[0].exp() * (logits[0] - logits[1])).sum(-1)
    found = in_fp8.manifest(in_fp8.catalog.rows()[0].identity).facts.arithmetic
    assert found is not None
    assert 0 < float(kl.max()) <= found.kl_max * (1 + 1e-3)


def continued(model: LanguageModel, cache: KVCache, question: list[int], answer: Sequence[int] | None) -> torch.Tensor:
    """Logits [4, V] after a question and after the first tokens of an answer; None answers greedily."""
    continuation = Continuation(model, ready(model, cache), [question], 4)
    logits = [continuation.start()[0]]
    for step in range(3):
        token = logits[-1].argmax() if answer is None else torch.tensor(answer[step])
        logits.append(continuation.step(token[None])[0])
    return torch.stack(logits)


def test_questions_are_answered_in_the_arithmetic_of_the_artifact(in_fp8: Store) -> None:
    worker = QueryWorker.open(in_fp8.storage.url)
    assert any(isinstance(module, Fp8Linear) for module in worker.model.text.modules())
    assert sttm.open(in_fp8.storage.url).ask("clip-0.mp4", "What colour is the circle?")


def test_fp8_and_bfloat16_are_other_recipes(small: tuple[str, ...], in_fp8: Store) -> None:
    config = load_index_config("tiny", [*small, "model.dtype=bfloat16"])
    checkpoint, manifest = Checkpoint.open(config.model), in_fp8.manifest(in_fp8.catalog.rows()[0].identity)
    assert [d.path for d in differences(index_recipe(config, checkpoint), manifest.recipe)] == ["model.dtype"]
    with pytest.raises(ModelError, match="its dtype differ"):
        require_same_model(manifest, checkpoint)


def test_without_probe_questions_the_model_is_in_fp8_from_the_start(small: tuple[str, ...], tmp_path: Path) -> None:
    config = load_index_config("tiny", [*small, "model.dtype=fp8", "fidelity.probes=[]"])
    Store.open(tmp_path, create=True)
    checkpoint = Checkpoint.open(config.model)
    indexer = Indexer(config, index_recipe(config, checkpoint), str(tmp_path), "run", device="cpu")
    assert any(isinstance(module, Fp8Linear) for module in indexer._model.modules())


def test_fp8_that_changes_answers_too_much_ends_the_run(corpus: Path, small: tuple[str, ...], tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"clip-0\.mp4 by .* nats a token against bfloat16, more than"):
        sttm.index(corpus, tmp_path / "store", "tiny", [*small, "model.dtype=fp8", "fidelity.max_kl=1e-9"])
    assert not (tmp_path / "store" / "commit").exists()
