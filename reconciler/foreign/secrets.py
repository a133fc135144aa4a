"""Which texts of other tools are secrets, or references to some. Pure; in doubt, it is a secret."""

from __future__ import annotations

import re

_WORDS = re.compile(
    r"keys?|api_?keys?|token|secrets?|passw(or)?d|passphrase|pwd|pass|auth|authorization|bearer|credentials?|cookie"
    r"|session|private|signature|dsn|webhook|pat|jwt|cert|pin|connectionstring"
)
_NAMES = re.compile(r"api_?key|access_?key|database_?url|redis_?url|mongo(db)?_?ur[il]|connection_?string", re.I)
_PREFIXES = re.compile(
    r"\b(sk-|pk-|rk_|sk_|ghp_|gho_|ghs_|ghu_|github_pat_|glpat-|xox[abeprs]-|hf_|AKIA|ASIA|AIza|ya29\.|eyJ[A-Za-z0-9]"
    r"|npm_|pypi-|tvly-|r8_|gsk_|lsv2_|nvapi-|xai-|dop_v1_|shpat_|SG\.|secret_|ntn_)[A-Za-z0-9]"
)
_BEARER = re.compile(r"\b(bearer|basic|token)\s+\S", re.I)
_PRIVATE = re.compile(r"-----BEGIN ")
_CREDENTIALS = re.compile(r"[a-z][a-z0-9+.-]*://[^/\s@]+@", re.I)
_QUERY = re.compile(r"[?&;]([A-Za-z0-9_.-]+)=[^&\s]", re.I)
_RUN = re.compile(r"[A-Za-z0-9+]{20,}|[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_REFERENCE = re.compile(
    r"\$\{(?:env:|input:)?(?P<braced>[A-Za-z_][A-Za-z0-9_-]*)(?::?[-?+=][^}]*)?\}"
    r"|\$(?P<bare>[A-Za-z_][A-Za-z0-9_]*)|%(?P<windows>[A-Za-z_][A-Za-z0-9_]*)%"
    r"|os\.environ/(?P<litellm>[A-Za-z_][A-Za-z0-9_]*)|\$\{env\.(?P<dotted>[A-Za-z_][A-Za-z0-9_]*)\}"
)


def says_secret(name: str) -> bool:
    """Whether a variable, header or flag of this name is there to hold a secret: GITHUB_TOKEN, X-Api-Key, apiKey."""
    apart = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name)
    return bool(_NAMES.search(name)) or any(map(_WORDS.fullmatch, re.split(r"[^a-z0-9]+", apart.lower())))


def holds_secret(text: str) -> bool:
    """Whether a text looks like one, or has one in it: a known prefix, credentials in an address, a long random run."""
    if any(pattern.search(text) for pattern in (_PREFIXES, _BEARER, _PRIVATE, _CREDENTIALS)):
        return True
    if any(says_secret(name) or name.lower() in ("sig", "code") for name in _QUERY.findall(text)):
        return True
    return any(_random(run) for run in _RUN.findall(text))


def _random(run: str) -> bool:
    return any(c.isdigit() for c in run) and any(c.isalpha() for c in run)


def referenced(text: str) -> str:
    """The name of the variable that a text is nothing but a reference to: `${X}`, `$X`, `${env:X}`, `os.environ/X`.

    Empty for every other text."""
    found = _REFERENCE.fullmatch(text.strip())
    return variable(next(filter(None, found.groups()), "")) if found else ""


def references(text: str) -> list[str]:
    """Names of variables that are filled in somewhere in a text."""
    return [next(filter(None, found), "") for found in _REFERENCE.findall(text)]


def variable(text: str) -> str:
    """A name as that of an environment variable: `search-api key` → SEARCH_API_KEY. Empty for nothing."""
    if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", text):
        return text
    name = re.sub(r"[^A-Za-z0-9]+", "_", text).strip("_").upper()
    return f"_{name}" if name[:1].isdigit() else name
