"""Explanations of failed requests to the Hugging Face hub, each one sentence with a remedy.

Does not import torch. Connection errors are recognised by the names of their classes, because the hub's
library has used several HTTP libraries.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from json import JSONDecodeError
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
NETWORK = {errno.ECONNREFUSED, errno.ECONNRESET, errno.ECONNABORTED, errno.EPIPE, errno.ETIMEDOUT,
           errno.EHOSTUNREACH, errno.ENETUNREACH}  # fmt: skip


def reason(repo: str, error: Exception) -> str:
    """Return why a download of `repo` failed, and a remedy: text to follow the colon of an error message."""
    for cause in _causes(error):
        for said in (_offline(cause), _answer(repo, cause), _connection(cause), _cache(cause)):
            if said:
                return said
    return f"{_first_line(error)} ({type(error).__name__})"


def is_missing(error: Exception) -> bool:
    """Return whether the error is the hub's answer that there is no such model."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    # GatedRepoError is a subclass of RepositoryNotFoundError, but a gated model exists.
    return isinstance(error, RepositoryNotFoundError) and not isinstance(error, GatedRepoError)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield the error and the errors that caused it; at most 10, because the chain may be circular."""
    for _ in range(10):
        if error is not None:
            yield error
            error = error.__cause__ or error.__context__


def _offline(error: BaseException) -> str | None:
    from huggingface_hub.errors import OfflineModeIsEnabled

    if not isinstance(error, OfflineModeIsEnabled):
        return None
    variable = "HF_HUB_OFFLINE" if os.environ.get("HF_HUB_OFFLINE") else "TRANSFORMERS_OFFLINE"
    return f"{variable} is set (unset it to use the hub)"


def _answer(repo: str, error: BaseException) -> str | None:
    """Explain an error response of the hub, or of a proxy that answered for it, with a remedy.

    Returns None if `error` is not such a response.
    """
    from huggingface_hub.constants import ENDPOINT
    from huggingface_hub.errors import (
        FileMetadataError,
        GatedRepoError,
        RemoteEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    if isinstance(error, (FileMetadataError, JSONDecodeError, KeyError, TypeError)):  # such as a login page
        return (
            f"{_hub()} does not answer as a hub: check HF_ENDPOINT, and whether this network asks for a login"
        )
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status is None:
        return None
    # Subclasses first: a GatedRepoError is also a RepositoryNotFoundError.
    said_by_class = {
        GatedRepoError: f"it is gated: ask for access on {ENDPOINT}/{repo}, and log in with 'hf auth login'",
        RepositoryNotFoundError: "there is no such model on the hub, or it is private: then log in with "
        "'hf auth login'",
        RevisionNotFoundError: "it has no such revision",
        RemoteEntryNotFoundError: f"it has no such file: see {ENDPOINT}/{repo}/tree/main",
    }
    for kind, said in said_by_class.items():
        if isinstance(error, kind):
            return said
    if status == 401:
        token = "in HF_TOKEN" if os.environ.get("HF_TOKEN") else "saved by 'hf auth login'"
        return f"{_hub()} does not accept the token {token}: replace or remove it"
    remedies = {
        403: "see whether the token may read this model",
        407: "set the proxy's user and password in HTTPS_PROXY",
        429: "try again in a few minutes, or log in with 'hf auth login'",
    }
    remedy = remedies.get(status, "try again later" if status >= 500 else "check HF_ENDPOINT")
    said = " ".join(str(getattr(error, "server_message", None) or "").split())
    return f"{_hub()} answers with status {status}{said and f' ({said})'}: {remedy}"


def _connection(error: BaseException) -> str | None:
    """Explain why requests do not reach the hub, with a remedy.

    Returns None if `error` is not a connection error.
    """
    classes, said = {cls.__name__ for cls in type(error).__mro__}, _first_line(error)
    if classes & {"LocalProtocolError", "UnicodeEncodeError"}:  # the error's own text contains the token
        return "the token in HF_TOKEN, or saved by 'hf auth login', is not valid: replace or remove it"
    if not classes & {"TransportError", "InvalidURL"}:
        return None
    if "ProxyError" in classes:
        what = f"cannot be reached, because the proxy refuses ({said}): check HTTPS_PROXY"
    elif "TimeoutException" in classes:
        what = "does not answer in time: try again later"
    elif classes & {"UnsupportedProtocol", "InvalidURL"}:
        what = f"has a wrong address ({said}): set HF_ENDPOINT to one such as https://huggingface.co"
    elif "SSL" in said:
        what = f"cannot be reached securely ({said}): to trust a proxy's certificate, set SSL_CERT_FILE"
    else:
        what = f"cannot be reached ({said}): check the connection"
    return f"{_hub()} {what}"


def _cache(error: BaseException) -> str | None:
    """Explain why files cannot be written to the hub's cache on this machine.

    Returns None if `error` has another cause.
    """
    from huggingface_hub.constants import HF_HUB_CACHE

    number = error.errno if isinstance(error, OSError) else None
    if found := re.search(r"\(os error (\d+)\)", str(error)):  # format of the hub's store for large files
        number = int(found[1])
    if number is None or number in NETWORK:
        return None
    said = f"the hub's cache {HF_HUB_CACHE!r} cannot be written ({os.strerror(number)}):"
    if number in FULL:
        return f"{said} make room, or set HF_HOME to a folder on another disk; whole files are kept"
    return f"{said} set HF_HOME to another folder"


def _hub() -> str:
    """Return the address of the hub, and that of any proxy, for error messages, without passwords."""
    from huggingface_hub.constants import ENDPOINT

    parts, proxies = urlsplit(ENDPOINT), getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    if proxy is None or proxy_bypass(parts.hostname or ""):
        return f"the hub ({ENDPOINT})"
    return f"the hub ({ENDPOINT} by the proxy {proxy.rpartition('@')[2]})"


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
