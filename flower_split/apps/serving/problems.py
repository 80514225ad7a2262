"""What is wrong with a request, in the form that OpenAI's clients read."""

from typing import Any

from flower_split.errors import FlowerSplitError


class RequestError(FlowerSplitError):
    """A request that is answered with an error.

    Args:
        message: What was expected, what came and what to do.
        status: HTTP status.
        param: Name of the field that is wrong.
        code: OpenAI's code, where it has one.
        retry_after: Seconds after which the request may be sent again; None says nothing.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = code
        self.headers = {} if retry_after is None else {"Retry-After": str(retry_after)}

    @property
    def body(self) -> dict[str, Any]:
        """The answer's JSON."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        if self.status == 429:
            kind = "rate_limit_error"
        return {
            "error": {
                "message": str(self),
                "type": kind,
                "param": self.param,
                "code": self.code,
            }
        }
