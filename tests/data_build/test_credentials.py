"""Where a credential is looked for, and that nobody is told or asked."""

import getpass
import logging
import pickle
import traceback

import keyring
import pytest
from keyring.backend import KeyringBackend

from data_build.cache import DataError
from data_build.credentials import Secret, SignIn, find, how_to, redacted, require

SIGN_IN = SignIn(
    variables={"user": "EXAMPLE_USER", "password": "EXAMPLE_PASSWORD"},
    where="https://example/account",
    hosts=("example",),
    netrc_host="example",
    keyring_service="astrobio:example",
)


class Chain(KeyringBackend):
    """A keyring in memory."""

    priority = 1
    entries: dict = {}

    def get_password(self, service, username):
        return self.entries.get((service, username))

    def set_password(self, service, username, password):
        self.entries[service, username] = password


@pytest.fixture(autouse=True)
def nothing_found(monkeypatch, tmp_path):
    """No credentials of this machine, and an error for whoever asks at the terminal."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("EXAMPLE_USER", "EXAMPLE_PASSWORD", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    before = keyring.get_keyring()
    keyring.set_keyring(Chain())
    monkeypatch.setattr(Chain, "entries", {})

    def asked(*arguments, **keywords):
        raise AssertionError("a prompt")

    monkeypatch.setattr("builtins.input", asked)
    monkeypatch.setattr(getpass, "getpass", asked)
    yield
    keyring.set_keyring(before)


def set_netrc(tmp_path, text="machine example login from-netrc password netrc-password\n"):
    (tmp_path / ".netrc").write_text(text)
    (tmp_path / ".netrc").chmod(0o600)


def test_the_order_is_explicit_environment_file_keyring(monkeypatch, tmp_path):
    Chain.entries |= {("astrobio:example", "user"): "from-keyring", ("astrobio:example", "password"): "kr-password"}
    assert find(SIGN_IN).reveal("user") == "from-keyring"
    set_netrc(tmp_path)
    assert find(SIGN_IN).reveal("user") == "from-netrc"
    monkeypatch.setenv("EXAMPLE_USER", "from-environment")
    found = find(SIGN_IN)
    assert found.reveal("user") == "from-environment" and found.reveal("password") == "netrc-password"
    assert found.found_in == {"user": "environment", "password": "~/.netrc"}
    assert find(SIGN_IN, {"user": "from-caller"}).reveal("user") == "from-caller"


def test_an_rc_file_comes_before_the_keyring(tmp_path):
    sign_in = SignIn({"key": "EXAMPLE_KEY"}, "x", ("example",), rc_file="~/.examplerc", keyring_service="s")
    Chain.entries[("s", "key")] = "from-keyring"
    (tmp_path / ".examplerc").write_text("url: https://example\nkey: rc:with-a-colon\n")
    assert find(sign_in).reveal("key") == "rc:with-a-colon"


def test_half_a_credential_is_none(monkeypatch):
    monkeypatch.setenv("EXAMPLE_USER", "me")
    assert find(SIGN_IN) is None


def test_a_missing_one_says_what_to_set_and_where_to_get_it():
    with pytest.raises(DataError) as caught:
        require(SIGN_IN, "Example archive")
    for words in ("Example archive", "EXAMPLE_USER and EXAMPLE_PASSWORD", "machine example", "https://example/account"):
        assert words in str(caught.value)
    assert how_to(SIGN_IN) in str(caught.value)


def test_a_keyring_that_would_ask_is_not_asked(monkeypatch):
    Chain.entries |= {("astrobio:example", part): "value" for part in ("user", "password")}
    monkeypatch.setattr(Chain, "__module__", "keyrings.alt.file")
    assert find(SIGN_IN) is None


def test_a_broken_netrc_is_named_but_not_quoted(tmp_path):
    set_netrc(tmp_path, "machine example login me password hunter2-netrc oops\n")
    with pytest.raises(DataError, match=r"\.netrc, line \d: not a valid netrc") as caught:
        find(SIGN_IN)
    assert "oops" not in "".join(traceback.format_exception(caught.value))


def test_a_secret_shows_itself_nowhere():
    secret = Secret("hunter2 & more")
    assert "hunter2" not in f"{secret} {secret!r} {secret:>20} {[secret]} {{'a': {secret}}}"
    with pytest.raises(TypeError, match="not stored"):
        pickle.dumps(secret)
    assert secret.reveal() == "hunter2 & more"


@pytest.mark.parametrize(
    "form",
    [
        "hunter3 & more/",
        "hunter3%20%26%20more%2F",
        "hunter3%20%26%20more/",
        "hunter3+%26+more%2F",
        "aHVudGVyMyAmIG1vcmUv",
    ],
)
def test_every_form_a_secret_travels_in_is_redacted(form):
    Secret("hunter3 & more/")
    assert redacted(f"GET /?key={form} HTTP/1.1") == "GET /?key=*** HTTP/1.1"


def test_log_records_are_redacted_whoever_writes_them(caplog):
    Secret("hunter4-in-a-log")
    caplog.set_level(logging.DEBUG)
    logging.getLogger("urllib3.connectionpool").debug('"GET %s"', "/?key=hunter4-in-a-log")
    logging.getLogger("some.library").error("plain hunter4-in-a-log")
    assert "hunter4" not in caplog.text and caplog.text.count("***") == 2
