# SPDX-License-Identifier: Apache-2.0
"""POST a message to an OTLP endpoint, over HTTP or HTTPS, on a connection that is kept.

    200        taken (the answer may refuse a part)
    429, 502, 503, 504, no answer     later, at `Retry-After` if it says so
    the rest   refused: the same message would be refused again
Source: OTLP specification 1.x, "OTLP/HTTP Response", "OTLP/HTTP Throttling".
"""

import http.client
import ssl
import urllib.parse
from http import HTTPStatus

from insula.export.config import Otlp
from insula.export.sink import Unavailable

MAX_ANSWER_BYTES = 1 << 20
MAX_AFTER_S = 300.0
_LATER = frozenset(
    {
        HTTPStatus.TOO_MANY_REQUESTS,
        HTTPStatus.BAD_GATEWAY,
        HTTPStatus.SERVICE_UNAVAILABLE,
        HTTPStatus.GATEWAY_TIMEOUT,
    }
)


class Post:
    """An endpoint.  Used by one thread."""

    def __init__(self, endpoint: Otlp) -> None:
        """Raises: OSError for certificates that cannot be read."""
        url = urllib.parse.urlsplit(endpoint.endpoint)
        self._path = url.path.rstrip("/")
        self._headers = {"Content-Type": "application/x-protobuf", **endpoint.headers}
        host = url.hostname or ""
        if url.scheme == "https":
            self._connection: http.client.HTTPConnection = http.client.HTTPSConnection(
                host, url.port, timeout=endpoint.timeout_s, context=_context(endpoint)
            )
        else:
            self._connection = http.client.HTTPConnection(host, url.port, timeout=endpoint.timeout_s)

    def __call__(self, path: str, body: bytes) -> bytes | None:
        """Send a message.  Returns: the answer; None: it was refused.  Raises: Unavailable."""
        try:
            response = self._ask(path, body)
            answer = response.read(MAX_ANSWER_BYTES)
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise Unavailable(f"{self._connection.host}: {str(error) or type(error).__name__}") from error
        if response.status == HTTPStatus.OK:
            return answer
        if response.status in _LATER:
            after_s = _seconds(response.headers.get("Retry-After", ""))
            raise Unavailable(f"{self._connection.host}: it answered {response.status}", after_s=after_s)
        return None

    def _ask(self, path: str, body: bytes) -> http.client.HTTPResponse:
        """Send a request; on a new connection, if the one that was kept has been closed meanwhile."""
        is_kept = self._connection.sock is not None
        try:
            return self._ask_once(path, body)
        except ConnectionError:
            self.close()
            if not is_kept:
                raise
            return self._ask_once(path, body)

    def _ask_once(self, path: str, body: bytes) -> http.client.HTTPResponse:
        self._connection.request("POST", self._path + path, body=body, headers=self._headers)
        return self._connection.getresponse()

    def close(self) -> None:
        self._connection.close()


def _seconds(text: str) -> float:
    return min(float(text), MAX_AFTER_S) if text.isdigit() else 0.0


def _context(endpoint: Otlp) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=endpoint.ca_file or None)
    if endpoint.certificate_file:
        context.load_cert_chain(endpoint.certificate_file, endpoint.key_file or None)
    return context
