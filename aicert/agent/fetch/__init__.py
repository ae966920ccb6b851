"""Fetch inputs: resolve them to immutable revisions, download, hash and freeze them.

`resolve` says what a URI leads to now; `survey` reads that through; `fetch` brings it. See `errors`
for the ways to fail.
"""

from aicert.agent.fetch.resolve import MAX_BYTES, SCHEMES, Fetched, Surveyed, fetch, resolve, survey
from aicert.agent.fetch.source import InputRequest, RemoteFile, Resolved, Retry

__all__ = [
    "MAX_BYTES",
    "SCHEMES",
    "Fetched",
    "InputRequest",
    "RemoteFile",
    "Resolved",
    "Retry",
    "Surveyed",
    "fetch",
    "resolve",
    "survey",
]
