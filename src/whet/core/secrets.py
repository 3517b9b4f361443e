"""What must not be written down: tokens, keys, passwords, signed addresses; and text without them.

Three things are hidden. What looks like a secret wherever it stands (a hub token, a password in a URL, a signature in
its query, an Authorization header). The value of whatever is called like one (`api_key`, `WANDB_API_KEY`). And, letter
by letter, each value that is known to be one: of the environment's variables that are called like secrets, and of the
config's keys and URLs, which `load_config` hands to `remember`.

Hiding is done at the edges, where text leaves the process (the terminal, the log, `run.json`, a manifest, a report),
so that nobody in between has to think of it. Rows of a dataset are no such edge: what a model is trained on is shown
as it is.
"""

from __future__ import annotations

import html
import json
import logging
import os
import re
import sys
import threading
import traceback
import warnings
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any
from urllib.parse import parse_qsl, quote, quote_plus, unquote

from whet.core.printable import printable

MASK = "***"

SHORTEST = 6
"""Characters of the shortest value that is hidden letter by letter; a shorter one would hide half of any text."""

_NAME = re.compile(
    r"(^|[_.\- ])((api|access|account|private|secret|shared)[_-]?key(_?id)?|auth|authorization|cookie"
    r"|connection[_-]?string|credentials?|passphrase|passwd|password|pwd|sas|secret|token)s?$",
    re.IGNORECASE,
)
_PLURAL_TOKENS = re.compile(r"(^|_)(?!api_|access_|auth_)\w*tokens$|^tokens$", re.IGNORECASE)
_TOKEN_OF_A_TOKENIZER = re.compile(
    r"(^|_)(bos|eos|pad|unk|eot|cls|sep|mask|image|audio|video|boi|eoi|boa|eoa|prefix|suffix|middle|start|stop|end|bot"
    r"|eom|step|placeholder|special|new|extra|response|prompt|separator|control|python|tool|message|think\w*)_tokens?$",
    re.IGNORECASE,
)
_NAME_OF_A_PLACE = re.compile(r"^(old)?pwd$|_(file|path|dir|folder|sock|socket|pid|agent_info)$", re.IGNORECASE)

# A secret in a query: of S3, Google, Azure, and whatever calls itself a token, a key or a signature.
_IN_QUERY = (
    r"x-amz-(?:signature|credential|security-token)|x-goog-(?:signature|credential)|awsaccesskeyid|googleaccessid"
    r"|sig|signature|se?cret|\w*token|api_?key|\w*access_?key|key|auth|password|passwd|pwd|policy|key-pair-id"
)
_PATTERNS = (
    # user:password@, and a token alone before the @
    (re.compile(r"(?<=://)[^/\s:@'\"<>]*:[^/\s@'\"<>]+(?=@)"), MASK),
    (re.compile(r"(?:(?<=https://)|(?<=http://))[^/\s:@'\"<>]{16,}(?=@)"), MASK),
    (re.compile(rf"([?&;](?:{_IN_QUERY})=)[^&\s'\"#<>)\]}},]+", re.IGNORECASE), rf"\g<1>{MASK}"),
    (re.compile(r"(authorization[\"']?\s*[:=]\s*[\"']?)(?:(?:bearer|basic|token)\s+)?[^\s\"',}]+", re.I), rf"\1{MASK}"),
    # the same as bytes, cookies, and an option of a command line
    (re.compile(r"(authorization[\"']\s*,\s*b?[\"'])[^\"']+", re.IGNORECASE), rf"\1{MASK}"),
    (re.compile(r"(\b(?:set-)?cookie[\"']?\s*[:=]\s*[\"']?)[^\r\n\"']+", re.IGNORECASE), rf"\1{MASK}"),
    (
        re.compile(
            r"(--(?:\w+[.-])*(?:(?:api|access|secret)[_-]key|(?:hf|hub|auth|access|api)[_-]token|password|secret) )"
            r"(?:'[^']*'|(?!--)\S{4,})",
            re.IGNORECASE,
        ),
        rf"\1{MASK}",
    ),
    (re.compile(r"\b(bearer\s+)[\w.~+/=-]{12,}", re.IGNORECASE), rf"\1{MASK}"),
    (
        re.compile(
            r"(?<![^\W_])((?:account|shared_?access|aws_?secret_?access|api|secret|access)[_-]?key|sharedaccesssignature"
            r"|(?:pg)?password|passwd|client[_-]?secret|(?<=_)secret|(?:private|refresh|session)[_-]token"
            r"|(?:hf|hub|auth|access|api)[_-]?token)([\"']?\s*[=:]\s*[\"']?)"
            r"(?!\*\*\*)[^\s\"',;&)}\]]{4,}",
            re.IGNORECASE,
        ),
        rf"\1\2{MASK}",
    ),
    (re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL), MASK),
    (
        re.compile(
            # The header of a JSON web token may hold certificates. Behind a hyphen only a short one is looked for: each
            # "-eyJ" of a text would be read to its end.
            r"\b(?:(?:hf|api_org)_[A-Za-z0-9]{20,}|sk-[A-Za-z0-9_-]{20,}|gh[pousr]_[A-Za-z0-9]{20,}|(?:AKIA|ASIA)[A-Z0-9]{16}"
            r"|github_pat_\w{20,}|glpat-[\w-]{16,}|xox[abprs]-[\w-]{10,}|AIza[\w-]{30,}|(?:wandb|local|nvapi|dop)[_-]v1_\w{20,}"
            r"|(?:eyJ[\w-]{10,500}+|(?<!-)eyJ[\w-]{10,}+)\.eyJ[\w-]{10,}+\.[\w-]*)"
        ),
        MASK,
    ),
)
# None of the patterns finds anything without one of these.
_TELLS = re.compile(r"://|[?&;]|:|=|_|-|AKIA|ASIA|AIza|earer|eyJ|uthorization|UTHORIZATION")

_remembered: set[str] = set()
# The one module of core with a state: what is secret is a fact of the process, and an error may come from anywhere.


def is_secret_name(name: str) -> bool:
    """Whether what is called so should not be seen.

    >>> [is_secret_name(name) for name in ("WANDB_API_KEY", "hub_token", "password", "AWS_ACCESS_KEY_ID")]
    [True, True, True, True]
    >>> [is_secret_name(name) for name in ("eos_token", "tokens", "max_new_tokens", "HF_TOKEN_PATH", "key", "author")]
    [False, False, False, False, False, False]
    """
    return (
        _NAME.search(name) is not None
        and _TOKEN_OF_A_TOKENIZER.search(name) is None
        and _PLURAL_TOKENS.search(name) is None
    )


def remember(values: Iterable[str]) -> None:
    """Hide these values wherever they stand, from now on; those shorter than `SHORTEST` only where a pattern does."""
    _remembered.update(value for value in values if _is_telling(value))


def secrets_of_url(text: str) -> Iterator[str]:
    """The password of each URL in a text, and the secrets in its query.

    >>> list(secrets_of_url("https://me:hunter2%21@host/a?part=1&sig=Zm9v%2B"))
    ['hunter2%21', 'hunter2!', 'Zm9v%2B', 'Zm9v+']
    """
    for address in re.findall(r"://\S+", text):
        authority, _, query = address[3:].partition("?")
        user, found, _ = authority.partition("/")[0].rpartition("@")
        password = user.partition(":")[2] if ":" in user else user if len(user) >= 16 else ""
        if found and password:
            yield from dict.fromkeys((password, unquote(password)))
        for part in re.split(r"[&;]", query.partition("#")[0]):
            name, _, value = part.partition("=")
            if value and re.fullmatch(_IN_QUERY, name, re.IGNORECASE):
                yield from dict.fromkeys((value, unquote(value), *(plain for _, plain in parse_qsl(part))))


def redact(text: str) -> str:
    """The text with whatever is secret in it replaced by ``***``.

    >>> redact("https://me:hunter2@host/a.jsonl?X-Amz-Signature=12ab&part=1 was refused: Authorization: Bearer abcdef")
    'https://***@host/a.jsonl?X-Amz-Signature=***&part=1 was refused: Authorization: ***'
    """
    return _without(text, _known_pattern(frozenset(_remembered), _of_environment()))


def redact_known(text: str) -> str:
    """As `redact`, but only values that are known to be secrets: for text that tells of rows, where nothing else may
    be changed."""
    known = _known_pattern(frozenset(_remembered), _of_environment())
    return known.sub(MASK, text) if known else text


def redacted(value: Any, name: str = "") -> Any:
    """A value of plain mappings, sequences and scalars, with every text in it redacted.

    Args:
        value: as JSON knows it.
        name: what it is called; text that is called like a secret is hidden whole.

    >>> redacted({"token": "abc", "eos_token": "</s>", "seen_tokens": 7, "from": ["s3://me:pw@box/a"]})
    {'token': '***', 'eos_token': '</s>', 'seen_tokens': 7, 'from': ['s3://***@box/a']}
    """
    return _redacted(value, name, _known_pattern(frozenset(_remembered), _of_environment()))


def _redacted(value: Any, name: str, known: re.Pattern[str] | None) -> Any:
    if isinstance(value, str):
        return MASK if value and is_secret_name(name) else _without(value, known)
    if isinstance(value, Mapping):
        return {_without_in_key(key, known): _redacted(item, str(key), known) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)([_redacted(item, name, known) for item in value])
    return value


def _without_in_key(key: Any, known: re.Pattern[str] | None) -> Any:
    return _without(key, known) if isinstance(key, str) and ("://" in key or "=" in key) else key


def _without(text: str, known: re.Pattern[str] | None) -> str:
    if known is not None:
        text = known.sub(MASK, text)
    if _TELLS.search(text) is None:
        return text
    for pattern, replacement in _PATTERNS:
        text = pattern.sub(replacement, text)
    return text


def _of_environment() -> frozenset[str]:
    """Values of variables that are called like secrets, and the secrets in URLs that variables hold.

    Read each time: a variable may be set after the start, by a library or a ``.env``. It costs 0.05 ms.
    """
    found: set[str] = set()
    for name, value in os.environ.items():
        if "://" in value:
            found.update(secret for secret in secrets_of_url(value) if _is_telling(secret))
        if is_secret_name(name) and _is_telling(value) and not _is_place(name, value):
            found.add(value)
    return frozenset(found)


def _is_place(name: str, value: str) -> bool:
    """Whether a variable names the file of a secret, which may be told; a key may begin with a slash as well."""
    if _NAME_OF_A_PLACE.search(name):
        return True
    return value.startswith(("/", "~", "./")) and os.path.exists(os.path.expanduser(value))


def _is_telling(value: str) -> bool:
    return len(value.strip()) >= SHORTEST and value.lower() not in _WORDS


_WORDS = frozenset({"disabled", "enabled", "offline", "online", "default", "anonymous", "required", "public"})


@lru_cache(maxsize=8)
def _known_pattern(remembered: frozenset[str], environment: frozenset[str]) -> re.Pattern[str] | None:
    """One expression for all known values, the longest first, in each way that a value may be written."""
    forms = {form for value in remembered | environment for form in _forms(value)}
    return re.compile("|".join(map(re.escape, sorted(forms, key=lambda form: (-len(form), form))))) if forms else None


def _forms(value: str) -> set[str]:
    """A value as it stands, and in a URL, in JSON, in Python's quotes and in HTML."""
    stripped = value.strip()
    written = {stripped, quote(stripped, safe=""), quote(stripped), quote_plus(stripped), html.escape(stripped)}
    written |= {json.dumps(stripped)[1:-1], json.dumps(stripped, ensure_ascii=False)[1:-1], repr(stripped)[1:-1]}
    return {form for form in written if len(form) >= SHORTEST}


def redact_process() -> None:
    """Whatever this process logs, warns of or dies of is redacted from now on, be it of whet or of a library.

    For the command line, which owns its process; a program that imports whet keeps its own hooks.
    """
    if logging.getLogRecordFactory() is not _Record:
        logging.setLogRecordFactory(_Record)
        sys.excepthook = _print_redacted
        as_usual = warnings.formatwarning
        warnings.formatwarning = lambda *args, **kwargs: redact(as_usual(*args, **kwargs))
        threading.excepthook = lambda args: _print_redacted(args.exc_type, args.exc_value, args.exc_traceback)


class _Record(logging.LogRecord):
    def getMessage(self) -> str:  # noqa: N802 - logging's name
        if self.exc_info and not self.exc_text:
            self.exc_text = redact("".join(traceback.format_exception(*self.exc_info))).rstrip("\n")
        return redact(super().getMessage())


def _print_redacted(kind: type[BaseException], error: BaseException | None, trace: Any) -> None:
    sys.stderr.write(printable(redact("".join(traceback.format_exception(kind, error, trace)))))
