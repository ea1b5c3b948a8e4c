"""Secrets are taken out of a message or record where it is made: of every error, log line and failure record.

Two ways, both at every place: the *values* of environment variables that are named like secrets, or that hold one (a
password in ``HF_ENDPOINT``), are replaced wherever they stand; and what has the *form* of a secret is replaced, whoever
it belongs to. The tests hold the forms against those of a kept detector (detect-secrets).
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import quote, unquote

REMOVED = "[removed]"

# Names of keys and variables whose values are secrets, by how they end.
SECRET_NAME = re.compile(
    r"(token|secret|passwd|password|passphrase|api_?key|access_?key(_id)?|private_?key|secret_?key|credentials?)$",
    re.IGNORECASE,
)
# Names that may also stand for something harmless: only a value that no word or number is counts as a secret.
_PERHAPS = re.compile(r"(_key|_auth|_pat|_pwd|_pass|_dsn|_cookie|_jwt|_sas|_sig|signature)$", re.IGNORECASE)

# Keys and tokens by how their issuers begin them, and what no other text looks like.
_TOKENS = [
    re.compile(pattern)
    for pattern in (
        r"\bhf_[A-Za-z0-9]{16,}",
        r"\b(?:sk|rk|pk)[-_](?:[a-z]+[-_])?[A-Za-z0-9_-]{20,}",
        r"\bgh[pousr]_\w{20,}",
        r"\bgithub_pat_\w{20,}",
        r"\bgl(?:pat|oas|dt|rt|ptt|ft|imt|agent|cbt|soat|ffct)-[\w.=-]{16,}",
        r"\bGR1348941[\w-]{16,}",
        r"(?i)\bxox[a-z]-(?:[a-z0-9-]{10,}|(?:\d+-)+[a-z0-9]+)",
        r"\bxapp-\d-[A-Za-z0-9-]{10,}",
        r"(?i)https://hooks\.slack\.com/services/\S+",
        r"https://(?:\w+\.)?discord(?:app)?\.com/api/webhooks/\S+",
        r"\b(?:A3T[A-Z0-9]|ABIA|ACCA|AKIA|ASIA)[0-9A-Z]{16}\b",
        r"\bAIza[\w-]{30,}",
        r"\bya29\.[\w-]{20,}",
        r"\bnvapi-[\w-]{16,}",
        r"\b(?:gsk|r8|xai|pplx|fw|tgp_v1|dop_v1|doo_v1)[_-][A-Za-z0-9_-]{20,}",
        r"\bnpm_[A-Za-z0-9]{30,}",
        r"\bpypi-[A-Za-z0-9_-]{50,}",
        r"\bdckr_pat_[\w-]{20,}",
        r"\bSG\.[\w-]{16,}\.[\w-]{16,}",
        r"\b(?:SK|AC)[a-z0-9]{32}\b",
        r"\bsq0(?:atp|csp)-[\w-]{20,}",
        r"\b\d{8,10}:[A-Za-z0-9_-]{35}\b",
        r"\b[MNO][A-Za-z\d_-]{23,25}\.[\w-]{6}\.[\w-]{27,}",
        r"\bAKC(?=\w*\d)[a-zA-Z0-9]{10,}",
        r"\bAP[\dABCDEF](?=\w*\d)[a-zA-Z0-9]{8,}",
        r"\b[0-9a-z]{32}-us\d{1,2}\b",
        # JSON web tokens
        r"\bey[JI][\w=-]{8,}\.(?:ey[JI])?[\w=-]{8,}(?:\.[\w.+/=-]*)?",
        r"-----BEGIN [A-Z ]*PRIVATE KEY(?: BLOCK)?-----[\s\S]*?(?:-----END [A-Z ]*PRIVATE KEY(?: BLOCK)?-----|\Z)",
        # credentials in an address: user:password@, TOKEN@. (`git@` is nobody.)
        r"(?P<before>://)(?!git@|\[removed\]@)[^/\s\"'?#]+(?P<after>@)",
    )
]
# Secrets by what stands before them: that is kept (the group "before"), so that a message still says where they were.
_CONTEXTS = [
    re.compile(pattern)
    for pattern in (
        # signed addresses, and tokens as parameters of one
        r"(?i)(?P<before>(?:[?&]|&amp;)(?:[\w.%-]{0,40}[_.-])?(?:access)?(?:token|secret|passwd|password|pwd|api_?-?key"
        r"|key|key-?id|signature|sig|credentials?|auth|authorization|sas|jwt|code|policy|session|key-pair-id)=)"
        r"[^&\s\"'<>#]+",
        # headers
        r"(?i)(?P<before>\b(?:proxy-)?authorization[\"']?\s*[:=]\s*[\"']?)(?!\[removed\])[^\s\"',;][^\"'\r\n,;}]*",
        r"(?i)(?P<before>\b(?:x-api-key|api-key|x-auth-token|private-token|x-amz-security-token|(?:set-)?cookie)[\"']?\s*"
        r"[:=]\s*[\"']?)(?!\[removed\])[^\s\"',;][^\"'\r\n,}]*",
        r"(?i)\bbearer\s+[\w.~+/=-]{16,}",
        r"(?P<before>_authToken=\s*)[^\s\"']+",
        r"(?i)(?P<before>aws.{0,20}?(?:key|pwd|pw|password|pass|token).{0,20}?['\"])[0-9a-z/+]{40}(?P<after>['\"])",
        # NAME_TOKEN=…, "api_key": "…", --password …
        r"(?P<before>\b[A-Z][A-Z0-9_]{0,40}(?:TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|_KEY|APIKEY|CREDENTIALS?)[\"']?\s*"
        r"[=:]\s*[\"']?)(?!\[removed\]|[A-Z_]+\b)[^\s\"',;]{6,}",
        r"(?i)(?P<before>\b[\w.-]{0,40}(?:secret|passwd|password|passphrase|api_?key|access_?key|private_?key)"
        r"[\"']?\s*(?:[=:]|:=|=>)\s*[\"']?)(?!\[removed\]|none\b|null\b|true\b|false\b)[^\s\"',;&)]{6,}",
        r"(?i)(?P<before>--?(?:[\w-]{0,40}-)?(?:token|password|api-key|secret)[= ])(?!\[removed\])[^\s\"']{6,}",
    )
]


def redact(text: str, environment: Mapping[str, str] | None = None) -> str:
    """``text`` without the values of secret environment variables and without what has the form of a secret.

    >>> redact("GET https://me:pw@hub.example/m?token=abc failed", {})
    'GET https://[removed]@hub.example/m?token=[removed] failed'
    """
    for secret in values_of(os.environ if environment is None else environment):
        if secret in text:
            text = text.replace(secret, REMOVED)
    return by_form(text)


def by_form(text: str, *, code: bool = False) -> str:
    """``text`` without what has the form of a secret.

    Args:
        code: it is a program, in which a word like ``key=`` says nothing of what follows.
    """
    for form in _TOKENS if code else (*_TOKENS, *_CONTEXTS):
        text = form.sub(_replace, text)
    return text


def _replace(match: re.Match[str]) -> str:
    kept = match.groupdict()
    return f"{kept.get('before') or ''}{REMOVED}{kept.get('after') or ''}"


def redact_data(value: Any, environment: Mapping[str, str] | None = None) -> Any:
    """Plain data with every string redacted, and the values of keys that are named like secrets removed."""
    environment = os.environ if environment is None else environment
    if isinstance(value, str):
        return redact(value, environment)
    if isinstance(value, Mapping):
        return {
            k: REMOVED if isinstance(v, str) and v and SECRET_NAME.search(str(k)) else redact_data(v, environment)
            for k, v in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [redact_data(v, environment) for v in value]
    return value


def secrets_in(value: Any, key: str = "") -> Iterator[str]:
    """Keys (``a.b.0``) of plain data under which something has the form of a secret.

    >>> list(secrets_in({"judge": {"url": "https://me:pw@host/v1", "api_key_env": "JUDGE_KEY"}}))
    ['judge.url']
    """
    if isinstance(value, Mapping):
        for name, part in value.items():
            yield from secrets_in(part, f"{key}.{name}" if key else str(name))
    elif isinstance(value, (list, tuple)):
        for number, part in enumerate(value):
            yield from secrets_in(part, f"{key}.{number}")
    elif isinstance(value, str) and value:
        named = SECRET_NAME.search(key.rpartition(".")[2]) and is_secret(value)
        if named or by_form(value) != value:
            yield key


def filter_log(record: logging.LogRecord) -> bool:
    """A filter for loggers: lets every record pass, without secrets."""
    if isinstance(record.msg, str):  # what Snakemake says of a job is in attributes, not in a message
        record.msg, record.args = redact(record.getMessage()), None
    return True


def values_of(environment: Mapping[str, str]) -> list[str]:
    """Secrets in an environment, the longest first: values by their variable's name, and credentials in addresses."""
    found: set[str] = set()
    for name, value in environment.items():
        perhaps = _PERHAPS.search(name) and len(value) >= 12 and re.search(r"\d", value)
        if (SECRET_NAME.search(name) or perhaps) and is_secret(value):
            found.add(value)
        found |= set(_credentials(value))
    return sorted(found, key=lambda secret: (-len(secret), secret))


def _credentials(value: str) -> Iterable[str]:
    """User and password, or token, of an address; as they stand there and as they are meant."""
    for userinfo in re.findall(r"://([^/\s?#]+)@", value):
        user, _, password = userinfo.partition(":")
        for part in (password,) if password else (user,):
            if len(part) >= 4 and part != "git":
                yield from {part, unquote(part), quote(unquote(part), safe="")}


def is_secret(value: str) -> bool:
    """Whether the value of a secret's name can be one: no path, no reference, no number, not too short."""
    return len(value) >= 8 and not value.startswith(("/", "$")) and not value.replace(".", "").isdigit()
