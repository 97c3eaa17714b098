"""Errors of the service in the form in which the OpenAI API reports them."""

from collections.abc import Sequence
from typing import Any

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from sttm.errors import ArtifactError, ModelError, QuestionError, StoreError, VideoError
from sttm.query.scheduler import BusyError
from sttm.store.storage import MissingObjectError

_SEE_LOG = "the service's log says more"


class ApiError(Exception):
    """A request that cannot be served, in the form in which the OpenAI API reports it.

    Attributes:
        status: the HTTP status.
        message: one sentence for the client.
        code: a short word that stays the same between versions.
    """

    def __init__(self, status: int, message: str, code: str) -> None:
        super().__init__(message)
        self.status, self.message, self.code = status, message, code

    @property
    def body(self) -> dict[str, Any]:
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {"error": {"message": self.message, "type": kind, "param": None, "code": self.code}}


def invalid(errors: Sequence[Any]) -> ApiError:
    """The first fault that pydantic found in a request: its place and the reason."""
    place = ".".join(map(str, errors[0]["loc"]))[:200] or "body"
    return ApiError(400, f"{place}: {errors[0]['msg'][:300]}", "invalid_request")


def api_error(error: Exception) -> ApiError:
    """Any error as the API reports it. Faults of the service are named without details such as the store's place."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, RequestValidationError):
        return invalid(error.errors())
    if isinstance(error, HTTPException):
        return ApiError(error.status_code, str(error.detail), "http")
    if isinstance(error, BusyError):
        return ApiError(503, str(error), "busy")
    if isinstance(error, QuestionError):
        return ApiError(400, str(error), "bad_question")
    if isinstance(error, VideoError):
        return ApiError(422, str(error), error.code)
    if isinstance(error, ModelError):
        message = "this video was indexed with another model, or this model's chat template cannot render follow-ups"
        return ApiError(409, f"{message}; {_SEE_LOG}", "other_model")
    if isinstance(error, (ArtifactError, MissingObjectError)):
        return ApiError(502, f"what is stored is damaged or gone; {_SEE_LOG}", "bad_artifact")
    if isinstance(error, StoreError):
        return ApiError(502, f"the store cannot be read; {_SEE_LOG}", "store")
    return ApiError(500, f"internal error; {_SEE_LOG}", "internal")
