"""Secrets as files: one value a file, in a folder such as the one containers get their secrets in."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

DEFAULT_FOLDER: Final = Path("/run/secrets")


class SecretUnreadable(OSError):
    """A secret's file is there but gives no value; the message names the file."""


def secrets_folder() -> Path | None:
    """BO_SECRETS_DIR, else /run/secrets where there is one; None where secrets come from the environment alone.

    Raises: SecretUnreadable where BO_SECRETS_DIR names no folder.
    """
    given = os.environ.get("BO_SECRETS_DIR")
    if not given:
        return DEFAULT_FOLDER if DEFAULT_FOLDER.is_dir() else None
    folder = Path(given)
    if not folder.is_dir():
        raise SecretUnreadable(f"BO_SECRETS_DIR: {folder} is not a folder")
    return folder


def secret(name: str) -> str | None:
    """The value kept in the file of this name, white space around it cut off; None where there is no such file.

    An empty file is a mistake, not a value: an empty database URL would quietly mean another database.
    Raises: SecretUnreadable.
    """
    folder = secrets_folder()
    path = None if folder is None else folder / name
    if path is None or not path.is_file():
        return None
    return secret_in(path)


def secret_in(path: Path) -> str:
    """The value a file holds. Raises: SecretUnreadable."""
    try:
        value = path.read_text(encoding="utf-8").strip()
    except PermissionError as error:
        raise SecretUnreadable(f"{path}: user {os.geteuid()} may not read it") from error
    except OSError as error:
        raise SecretUnreadable(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise SecretUnreadable(f"{path}: not text in UTF-8") from error
    if not value:
        raise SecretUnreadable(f"{path}: the file is empty")
    return value
