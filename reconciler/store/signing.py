"""Signatures as minisign makes and checks them (Ed25519 over BLAKE2b), so that its own tool can check ours.

Keys are the texts of minisign's key files, or only their second line. A signature carries a trusted comment.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from reconciler.core.diagnostics import Refused

if TYPE_CHECKING:
    from minisign import SecretKey

Password = Callable[[], str]  # asked for where a key turns out to need one


def new_pair(password: str) -> tuple[bytes, bytes]:
    """(secret key, public key) as the bytes of key files. Without a password the secret key is not encrypted."""
    from minisign import KeyPair

    pair = KeyPair.generate()
    public = bytes(pair.public_key) + b"\n"
    if password:
        pair.secret_key.encrypt(password)
    secret = bytes(pair.secret_key) + b"\n"
    pair.secret_key.wipe()
    return secret, public


def sign(data: bytes, key: str, password: Password, comment: str) -> bytes:
    """The signature of `data`, as the bytes of a .minisig file. Raises Refused for a key or password that is wrong."""
    with _secret(key, password) as secret:
        made = secret.sign(data, untrusted_comment="signature from a reconciler secret key", trusted_comment=comment)
        return bytes(made) + b"\n"


def check(data: bytes, signature: bytes, public: str) -> str:
    """The trusted comment of a signature that is right. Raises Refused for any other."""
    from minisign import Error, PublicKey, Signature, VerifyError

    try:
        lines = public.split("\n") if "\n" in public.strip() else []
        key = (
            PublicKey.from_bytes("\n".join(lines).strip().encode()) if lines else PublicKey.from_base64(public.strip())
        )
    except Error as error:
        raise Refused(f"this is not a public key of minisign: {error}", hint="it begins with RW") from error
    try:
        found = Signature.from_bytes(signature)
        key.verify(data, found)
    except VerifyError as error:
        hint = "somebody changed the statement or its signature, or the key is another one"
        raise Refused(f"the signature is not right: {error}", hint=hint) from error
    except Error as error:
        raise Refused(f"this is not a signature of minisign: {error}") from error
    return str(found.trusted_comment)


def _secret(key: str, password: Password) -> SecretKey:
    from minisign import Error, SecretKey

    text = key.strip()
    try:
        made = SecretKey.from_bytes(text.encode()) if "\n" in text else SecretKey.from_base64(text)
    except Error as error:
        hint = "make one with `reconcile attest --new-key FILE`, or `minisign -G`"
        raise Refused(f"this is not a secret key of minisign: {error}", hint=hint) from error
    try:
        if made.is_encrypted():
            made.decrypt(password())
    except (Error, MemoryError) as error:
        made.wipe()
        raise Refused(f"the secret key cannot be used: {error}", hint="check its password") from error
    return made
