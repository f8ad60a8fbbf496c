"""Who wrote a bundle: an Ed25519 signature of its manifest, by a key of the writer's own."""

from __future__ import annotations

import contextlib
from pathlib import Path

from torchyard.core.errors import UserError

SIGNATURE = "MANIFEST.sig"
HOW = "`ssh-keygen -t ed25519` makes a pair"


def signed(content: bytes, key: Path) -> bytes:
    """The signature, 64 bytes.

    Args:
        key: a file with a private key, of OpenSSH or PEM.

    Raises:
        UserError: it has none of Ed25519, or one that a passphrase protects.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    text, found = _content("--sign", key), None
    of_ssh = b"OPENSSH" in text
    load = serialization.load_ssh_private_key if of_ssh else serialization.load_pem_private_key
    try:
        found = load(text, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        if "password" in str(error).lower():
            raise UserError(f"--sign: {key}: has a passphrase, which nobody is asked for") from None
    if not isinstance(found, Ed25519PrivateKey):
        raise UserError(f"--sign: {key}: is no private key of Ed25519; {HOW}")
    return found.sign(content)


def is_signed(content: bytes, signature: bytes, key: Path) -> bool:
    """Whether the owner of a public key has signed this.

    Args:
        key: a file with the public key, of OpenSSH or PEM.

    Raises:
        UserError: it has none of Ed25519.
    """
    from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    text, found = _content("--key", key), None
    of_ssh = text.startswith(b"ssh-")
    load = serialization.load_ssh_public_key if of_ssh else serialization.load_pem_public_key
    with contextlib.suppress(ValueError, UnsupportedAlgorithm):
        found = load(text)
    if not isinstance(found, Ed25519PublicKey):
        raise UserError(f"--key: {key}: is no public key of Ed25519; {HOW}")
    try:
        found.verify(signature, content)
    except InvalidSignature:
        return False
    return True


def _content(option: str, key: Path) -> bytes:
    try:
        return key.expanduser().read_bytes()
    except OSError as error:
        raise UserError(f"{option}: {key}: {error.strerror or error}") from None
