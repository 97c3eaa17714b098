"""One JSON line on standard error for each video that ended, for log collectors; none if a person looks at it."""

import json
import sys
from datetime import UTC, datetime
from typing import Any

from sttm.store.catalog.frame_counts import frames_record
from sttm.store.catalog.row import CatalogRow
from sttm.urls import redact_url


def log_video(row: CatalogRow) -> None:
    """Write the line of one catalog row, unless standard error is a terminal, where the progress line says enough."""
    if sys.stderr.isatty():
        return
    line: dict[str, Any] = {
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "event": "video",
        "status": row.status,
        "run_id": row.run_id,
        "video_id": row.video_id,
        "uri": redact_url(row.uri),
    }
    if row.status == "ok":
        line |= {
            "identity": row.identity,
            **frames_record(row),
            "tokens_before": row.tokens_before,
            "tokens_after": row.tokens_after,
            "bytes": row.kv_bytes + row.tokens_bytes,
            "seconds": {stage: round(seconds, 4) for stage, seconds in row.timings_s.items()},
        }
    else:
        line |= {"code": row.error_code, "message": row.error_message}
    print(json.dumps(line), file=sys.stderr, flush=True)
