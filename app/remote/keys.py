"""The endpoints' API keys: from the environment, else from the system's keyring; never from a file of ours.

A key is a SecretStr from the moment it is known, so that no log, traceback or representation shows it.
"""

from __future__ import annotations

import contextlib
import os
import re
from types import ModuleType

from pydantic import SecretStr

from ...models.errors import UserError
from .endpoint import Endpoint, Endpoints

SERVICE = "lite-llama-tui"
PREFIX = "LITE_LLAMA_API_KEY_"


def variable(name: str) -> str:
    """The environment variable that is looked at for the key of the endpoint `name`."""
    return PREFIX + re.sub(r"[^A-Z0-9]", "_", name.upper())


def checked(key: str, where: str) -> SecretStr:
    """A key that can be sent. Raises UserError, which does not show it."""
    key = key.strip()
    if not key or not all("!" <= letter <= "~" for letter in key):
        raise UserError(f"The key {where} is empty, or has spaces or letters that no key has: give it again.")
    return SecretStr(key)


def find(endpoint: Endpoint) -> SecretStr | None:
    """The endpoint's key, None if it has none. May take long: a keyring can ask the user to unlock it.

    Raises UserError when the key should be somewhere and cannot be had.
    """
    own = endpoint.key_variable
    name = own or variable(endpoint.name)
    if value := os.environ.get(name):
        return checked(value, f"in {name}")
    if own:
        raise UserError(
            f"The variable {own}, for the key of {endpoint.name}, is not set: set it and start again."
        )
    keyring = _keyring()
    if keyring is None:
        return None
    try:
        value = keyring.get_password(SERVICE, endpoint.name)
    except keyring.errors.NoKeyringError:
        return None
    except Exception as error:  # of whatever desktop the keyring belongs to
        raise UserError(
            f"The keyring could not be read ({type(error).__name__}): unlock it, or set {name}."
        ) from None
    return checked(value, f"of {endpoint.name} in the keyring") if value else None


def store(name: str, key: SecretStr) -> None:
    """Put a key into the keyring. Raises UserError, which says how to do without, when there is none."""
    otherwise = f"set the environment variable {variable(name)} to the key instead."
    keyring = _keyring()
    if keyring is None:
        raise UserError(
            f"The package keyring, which would keep it, is not installed: install it, or {otherwise}"
        )
    try:
        keyring.set_password(SERVICE, name, key.get_secret_value())
    except keyring.errors.NoKeyringError:
        raise UserError(f"This system has no keyring to keep the key in: {otherwise}") from None
    except Exception as error:  # see find; the error's own text might quote what it was given
        raise UserError(f"The keyring did not take the key ({type(error).__name__}): {otherwise}") from None


def forget(name: str) -> None:
    """Take a key out of the keyring, if it is there."""
    if keyring := _keyring():
        with contextlib.suppress(Exception):
            keyring.delete_password(SERVICE, name)


def remove(endpoints: Endpoints, name: str) -> None:
    """Forget an endpoint, and its key. Raises UserError."""
    endpoints.remove(name)
    forget(name)


def _keyring() -> ModuleType | None:
    """The package, if it is installed."""
    try:
        import keyring
        import keyring.errors
    except ImportError:
        return None
    return keyring


def whence(endpoint: Endpoint) -> str:
    """Where the endpoint's key comes from, in words; asks no keyring to be unlocked."""
    name = endpoint.key_variable or variable(endpoint.name)
    return f"${name}" if endpoint.key_variable or os.environ.get(name) else "keyring or none"
