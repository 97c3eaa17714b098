"""Indexing a corpus in this process, without Ray: for a notebook, a script, one machine."""

import logging
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

from sttm.config import IndexConfig, index_recipe, load_index_config
from sttm.corpus.listing import VideoRef, list_corpus
from sttm.errors import ConfigError, SttmError, VideoError
from sttm.index_plan import error_row, key_of, make_plan
from sttm.indexer import DecodedVideo, Indexer, VideoReader
from sttm.models.checkpoint import Checkpoint
from sttm.models.placement import is_gpu_lost
from sttm.store.catalog.frame_counts import FrameCounts
from sttm.store.catalog.history import judge
from sttm.store.catalog.row import CatalogRow
from sttm.store.key import Recipe
from sttm.store.store import Store
from sttm.urls import redact_url
from sttm.video.nvdec import NotOnGpuError, cannot_decode_because

_log = logging.getLogger("sttm")


def index(
    corpus: str | Path,
    store: str | Path,
    config: str | Path | IndexConfig = "tiny",
    overrides: Sequence[str] = (),
    *,
    limit: int | None = None,
    retry_errors: bool = False,
) -> list[CatalogRow]:
    """Index every video of a corpus that the store does not hold yet, one after another, in this process.

    A video that cannot be indexed becomes an error row and costs no other, unless it crashes the process: for large
    archives run `sttm index`, which gives each video a process of its own. While one video is prefilled, the next one
    is decoded. An interrupted call loses at most the video under way; the same call goes on after it.

    Args:
        corpus: folder, glob, video file or manifest of videos, on any fsspec URL.
        store: folder or `s3://` URL of the store, which is made if it does not exist.
        config: name of a shipped settings file (`tiny`, `qwen2_5_vl_7b`), path of a YAML file, or settings.
        overrides: `section.key=value`, each replacing one setting of the file.
        limit: index only the first so many videos of the corpus.
        retry_errors: try videos again that failed before.

    Returns:
        One row for each video of the corpus, in its order: `row.status` is `ok` or `error`, and an error row has
        `error_code` and `error_message`. A video is thinned (`row.is_thinned`) if `video.max_frames` left out frames
        that `video.fps` asks for; a warning in the log `sttm` counts such videos and names the cure.

    Raises:
        ConfigError: the settings are wrong, or no video can be indexed with them.
        CorpusError: the corpus cannot be listed or holds no video.
        ModelError: the checkpoint cannot be used.
        StoreError: the store cannot be opened or written.
    """
    settings = config if isinstance(config, IndexConfig) else load_index_config(config, list(overrides))
    checkpoint = Checkpoint.open(settings.model)
    if checkpoint.notice:
        _log.warning(checkpoint.notice)
    recipe = index_recipe(settings, checkpoint)
    refs = list_corpus(str(corpus), limit=limit)
    opened = Store.open(str(store), create=True)
    opened.catalog.repair()
    plan = make_plan(refs, recipe, opened, retry_errors)
    before = opened.catalog.reader()
    new: dict[VideoRef, CatalogRow] = {}
    counts = FrameCounts()
    if plan.todo:
        run_id = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:6]}"
        read = _reading(settings)
        indexer = Indexer(settings, recipe, str(store), run_id)
        for ref, decoded in _decoded_ahead(read, plan.todo):
            new[ref] = _row(indexer, ref, recipe, run_id, decoded)
            opened.catalog.append([new[ref]])
            _log.info("%s: %s %s", ref.name, new[ref].status, new[ref].error_message)
            if new[ref].status == "ok":
                counts.add(new[ref])
    if cure := counts.cure(recipe):
        _log.warning(cure)
    skipped = [ref for ref in refs if ref not in new]
    known = {row.source_key: row for row in judge(before.history_of(ref.uri for ref in skipped))[0]}
    return [new[ref] if ref in new else known[key_of(ref, recipe)] for ref in refs]


def _reading(settings: IndexConfig) -> Callable[[VideoRef], DecodedVideo]:
    """How videos are decoded: with `video.decoder: nvdec` on the GPU, and on the CPU those that it cannot decode.

    Raises:
        ConfigError: `video.decoder` is nvdec, and there is no GPU that decodes.
    """
    reader = VideoReader(settings)
    if settings.video.decoder != "nvdec":
        return reader.read
    if cause := cannot_decode_because():
        raise ConfigError(f"video.decoder is nvdec, but {cause}; or set video.decoder to auto")

    def read(ref: VideoRef) -> DecodedVideo:
        try:
            return reader.read(ref, on_gpu=True)
        except NotOnGpuError as error:
            _log.info("%s: decoded on the CPU: a GPU cannot decode %s", ref.name, error)
            return reader.read(ref)

    return read


def _decoded_ahead(
    read: Callable[[VideoRef], DecodedVideo], refs: list[VideoRef]
) -> Iterator[tuple[VideoRef, "Future[DecodedVideo]"]]:
    """Each video with its decoding, which has begun one video ahead."""
    with ThreadPoolExecutor(1) as pool:
        following: Future[DecodedVideo] | None = pool.submit(read, refs[0])
        for ref, after in zip(refs, [*refs[1:], None], strict=True):
            current, following = following, None if after is None else pool.submit(read, after)
            assert current is not None
            yield ref, current


def _row(indexer: Indexer, ref: VideoRef, recipe: Recipe, run_id: str, decoded: "Future[DecodedVideo]") -> CatalogRow:
    try:
        video = decoded.result()
        return indexer.stored(video) or indexer.index(video)
    except VideoError as error:
        return error_row(ref, recipe, run_id, error.code, error.message)
    except OSError as error:  # an outage, which says nothing of the video: the next call tries it again
        return error_row(ref, recipe, run_id, "lost", f"{type(error).__name__}: {error}")
    except SttmError:  # the settings, the model or the store: no video could be indexed
        raise
    except Exception as error:  # the boundary where one video's fault becomes its row
        if is_gpu_lost(error):
            raise
        return error_row(ref, recipe, run_id, "crashed", f"{redact_url(ref.uri)}: {type(error).__name__}: {error}")
