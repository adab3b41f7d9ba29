"""Sign-in to archives: finds credentials and never prints them.

The order of search: given explicitly → environment variable → the archive's own rc file, or ``~/.netrc`` → the
system's keyring. Nothing asks for one at the terminal: a batch job would hang.

Every value is a `Secret`. Its text appears in no ``repr``, and `redacted` removes it from any text, such as the log
records of this process.
"""

import base64
import logging
import netrc
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote, quote_plus

import keyring
from keyring.errors import KeyringError

from data_build.cache import DataError

HIDDEN = "***"
#: Texts that must not be printed. They stay for the life of the process: a late log record may still hold one.
_known: set[str] = set()


class Secret:
    """A credential's value. `reveal` gives it; ``str``, ``repr`` and formatting give ``***``; it cannot be pickled."""

    __slots__ = ("_value",)

    def __init__(self, value: str):
        self._value = value
        _hide(value)

    def reveal(self) -> str:
        """The value itself, for the one place that sends it."""
        return self._value

    def __repr__(self) -> str:
        return f"Secret({HIDDEN})"

    def __str__(self) -> str:
        return HIDDEN

    def __format__(self, spec: str) -> str:
        return HIDDEN

    def __reduce__(self):
        raise TypeError("a Secret is not stored: it cannot be pickled or copied to another process")


@dataclass(frozen=True)
class SignIn:
    """How an archive is signed in to.

    Attributes:
        variables: part of the credential → environment variable, such as ``{"token": "MAST_API_TOKEN"}``.
        where: the page where a user gets one.
        hosts: hosts to which the credential may be sent, and no other.
        required: whether the archive answers nothing without it.
        rc_file: the archive's own file of ``part: value`` lines, if it has one.
        netrc_host: the machine's name in ``~/.netrc``, whose login and password are the parts user and password.
        keyring_service: the service's name in the system's keyring, where the user names are the parts.
        open_parts: parts that are no secret, such as a user name or an address.
    """

    variables: Mapping[str, str]
    where: str
    hosts: tuple[str, ...]
    required: bool = False
    rc_file: str | None = None
    netrc_host: str | None = None
    keyring_service: str | None = None
    open_parts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Credentials:
    """Part → value, and part → where it was found."""

    parts: Mapping[str, Secret]
    found_in: Mapping[str, str] = field(default_factory=dict)

    def reveal(self, part: str) -> str:
        """The value of one part."""
        return self.parts[part].reveal()


def find(sign_in: SignIn | None, explicit: Mapping[str, str] | None = None) -> Credentials | None:
    """The credentials of an archive, or None if a part is missing.

    Raises:
        DataError: a credential file cannot be read.
    """
    if sign_in is None:
        return None
    places = [
        ("explicit", dict(explicit or {})),
        ("environment", {part: os.environ[name] for part, name in sign_in.variables.items() if os.environ.get(name)}),
    ]
    if sign_in.rc_file:
        places.append((sign_in.rc_file, _rc_file(Path(sign_in.rc_file).expanduser(), sign_in.variables)))
    if sign_in.netrc_host:
        places.append(("~/.netrc", _netrc(sign_in.netrc_host)))
    parts: dict[str, str] = {}
    found_in: dict[str, str] = {}
    for part in sign_in.variables:
        for place, values in places:
            if values.get(part):
                parts[part], found_in[part] = values[part], place
                break
        else:
            value = _keyring(sign_in.keyring_service, part)
            if value:
                parts[part], found_in[part] = value, "keyring"
    if set(parts) != set(sign_in.variables):
        return None
    # An address or a user name is no secret, and hiding it would spoil every message.
    return Credentials(
        {part: (_Open if part in sign_in.open_parts else Secret)(value) for part, value in parts.items()}, found_in
    )


def require(sign_in: SignIn, archive: str, explicit: Mapping[str, str] | None = None) -> Credentials:
    """As `find`, but a missing credential is a `DataError` that says which variable to set and where to get one."""
    found = find(sign_in, explicit)
    if found is None:
        raise DataError(f"{archive} needs a sign-in: {how_to(sign_in)}")
    return found


def how_to(sign_in: SignIn) -> str:
    """Which variables to set, or which file to write, and where to get the credential."""
    ways = f"set {' and '.join(sign_in.variables.values())}"
    if sign_in.rc_file:
        ways += f", or write {sign_in.rc_file}"
    if sign_in.netrc_host:
        ways += f", or add machine {sign_in.netrc_host} to ~/.netrc"
    return f"{ways}; get one at {sign_in.where}"


def redacted(text: str) -> str:
    """``text`` with every known secret, plain, URL-encoded or in base64, replaced by ``***``."""
    for value in sorted(_known, key=len, reverse=True):  # one may be part of another
        if value in text:
            text = text.replace(value, HIDDEN)
    return text


def holds_secret(content: bytes) -> bool:
    """Whether a known secret stands in ``content``."""
    return any(value.encode() in content for value in _known)


def longest_secret() -> int:
    """Bytes of the longest known secret: how much two blocks must overlap when a stream is searched."""
    return max((len(value.encode()) for value in _known), default=0)


def basic(user: str, password: str) -> Secret:
    """The value of a Basic ``Authorization`` header."""
    return Secret("Basic " + _base64(f"{user}:{password}"))


class _Open(Secret):
    """A part that may be printed."""

    __slots__ = ()

    def __init__(self, value: str):
        self._value = value

    def __str__(self) -> str:
        return self._value


def _hide(value: str) -> None:
    if len(value) < 4:  # "a" as a password would blank every text; it protects nothing either
        return
    if not _known:
        _redact_log_records()
    _known.update({value, quote(value), quote(value, safe=""), quote_plus(value), _base64(value)})


def _base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def _redact_log_records() -> None:
    """Redact every log record of this process, whichever library writes it.

    urllib3 logs the path and query of each request, and some archives take their key in the query.
    """
    make = logging.getLogRecordFactory()

    def record(*arguments, **keywords):
        made = make(*arguments, **keywords)
        try:
            message = made.getMessage()
        except (TypeError, ValueError):  # a caller's arguments do not fit its format: logging itself reports that
            return made
        clean = redacted(message)
        if clean != message:
            made.msg, made.args = clean, ()
        return made

    logging.setLogRecordFactory(record)


def _rc_file(path: Path, parts: Mapping[str, str]) -> dict[str, str]:
    """Values of the lines ``part: value``."""
    try:
        lines = path.read_text().splitlines()
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read: {type(error).__name__}") from None
    pairs = [line.split(":", 1) for line in lines if ":" in line]
    return {key.strip(): value.strip() for key, value in pairs if key.strip() in parts}


def _netrc(host: str) -> dict[str, str]:
    path = Path(os.environ.get("NETRC") or "~/.netrc").expanduser()
    try:
        found = netrc.netrc(path).authenticators(host)
    except FileNotFoundError:
        return {}
    except netrc.NetrcParseError as error:  # its message quotes the line, which may hold the password
        raise DataError(f"{path}, line {error.lineno}: not a valid netrc file") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    return {"user": found[0] or "", "password": found[2] or ""} if found else {}


def _keyring(service: str | None, part: str) -> str | None:
    if service is None:
        return None
    if type(keyring.get_keyring()).__module__.startswith("keyrings.alt"):
        return None  # its encrypted file asks for a password at the terminal
    try:
        return keyring.get_password(service, part)
    except (KeyringError, RuntimeError):  # no keyring on this machine, or one that is locked
        return None
