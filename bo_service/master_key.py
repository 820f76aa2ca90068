"""The key the secrets of webhooks follow from: BO_SECRET_KEY, else a file of this machine."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import Final

from bo_service.domain.errors import NotConfigured
from bo_service.domain.signing import MIN_KEY_CHARACTERS, MasterKey
from bo_service.settings import Settings

FILE: Final = "secret_key"


def master_key(settings: Settings) -> MasterKey | None:
    """The configured key, or the one kept in `home`, which is made when it is first asked for.

    None where compute is external and no key is configured: the API and the relays may live on different machines.
    Raises: NotConfigured where the file is damaged.
    """
    if settings.secret_key is not None:
        return MasterKey(settings.secret_key.get_secret_value().encode())
    if settings.compute == "external":
        return None
    path = settings.home.expanduser() / FILE
    if not path.exists():
        _make(path)
    text = path.read_text().strip()
    if len(text) < MIN_KEY_CHARACTERS:
        raise NotConfigured(
            f"the file {FILE} in BO_HOME is damaged",
            hint="restore it, or delete it and make the webhooks anew",
        )
    return MasterKey(text.encode())


def _make(path: Path) -> None:
    """A random key, whole or not at all; where several processes come at once, the first one's stays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{FILE}.{os.getpid()}.{secrets.token_hex(4)}")
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(secrets.token_urlsafe(48) + "\n")
        file.flush()
        os.fsync(file.fileno())
    try:
        os.link(draft, path)
    except FileExistsError:
        pass
    finally:
        draft.unlink()
