"""The key file, and the commands that change it."""

import hashlib
import json
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
from typer.testing import CliRunner

from imgcls.cli.gateway import app
from imgcls.errors import UsageError
from imgcls.gateway.keys import create_key, expiry_after, read_keys, revoke_key


@pytest.fixture
def file(tmp_path):
    return tmp_path / "keys.yaml"


def call(*arguments, file):
    return CliRunner().invoke(app, ["keys", *arguments, "--file", str(file)], catch_exceptions=False)


def test_a_key_is_shown_once_and_only_its_hash_is_kept(file):
    result = call("create", "acme", "--expires", "90d", "--requests-per-s", "50", file=file)
    secret = result.stdout.strip()
    assert secret.startswith("imk_")
    assert len(secret) >= 4 + 43  # 256 bits in base64
    assert secret not in file.read_text()
    (key,) = read_keys(file)
    assert key.sha256 == hashlib.sha256(secret.encode()).hexdigest()
    assert key.expires - key.created == timedelta(days=90)
    assert secret not in call("list", file=file).output
    assert key.sha256 not in call("list", "--json", file=file).output


def test_the_file_is_its_owners_alone_whatever_the_umask(file):
    before = os.umask(0)
    try:
        create_key(file, "acme")
    finally:
        os.umask(before)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_file_that_others_may_read_is_warned_of(file):
    create_key(file, "acme")
    assert "warning" not in call("list", file=file).output
    file.chmod(0o644)
    assert "chmod 600" in call("list", file=file).output


def test_keys_differ(file):
    secrets = {create_key(file, f"client-{number}")[0] for number in range(20)}
    assert len(secrets) == 20


def test_keys_made_at_the_same_time_are_all_kept(file):
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: create_key(file, f"client-{number}"), range(16)))
    assert {key.name for key in read_keys(file)} == {f"client-{number}" for number in range(16)}


def test_a_name_is_given_once_even_after_it_is_revoked(file):
    create_key(file, "acme")
    revoke_key(file, "acme")
    with pytest.raises(UsageError, match="already"):
        create_key(file, "acme")


def test_revoking_twice_keeps_the_first_time(file):
    create_key(file, "acme")
    first = revoke_key(file, "acme")
    assert first.revoked is not None
    assert revoke_key(file, "acme") == first
    with pytest.raises(UsageError, match="has no key 'other'; there is acme"):
        revoke_key(file, "other")


def test_list_tells_states_apart(file):
    create_key(file, "good", requests_per_s=2.5, burst=4, models=("flowers", "birds"))
    create_key(file, "old", expires=datetime.now(UTC) - timedelta(seconds=1))
    create_key(file, "gone")
    call("revoke", "gone", file=file)
    listed = json.loads(call("list", "--json", file=file).stdout)
    assert {row["name"]: row["status"] for row in listed} == {"good": "active", "old": "expired", "gone": "revoked"}
    table = call("list", file=file).stdout
    assert "2.5" in table
    assert "flowers, birds" in table
    assert max(map(len, table.splitlines())) <= 80


def test_an_empty_list_says_how_to_begin(file):
    assert "keys create" in call("list", file=file).output


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"name": "a b"}, "name is 'a b'"),
        ({"name": "jwt:x"}, "name is"),
        ({"name": "anonymous"}, "anonymous"),
        ({"burst": 3}, "burst is 3 without a rate"),
        ({"requests_per_s": 0}, "requests_per_s is 0"),
        ({"models": ('a"b',)}, "models.0 is"),
        ({"requests_per_s": True}, "requests_per_s is True; .* valid number"),
    ],
)
def test_a_key_that_cannot_be_is_refused_and_nothing_written(file, options, expected):
    with pytest.raises(UsageError, match=expected):
        create_key(file, **({"name": "acme"} | options))
    assert not file.exists()


@pytest.mark.parametrize("text", ["90", "0d", "9y", "-1d", "d", "1.5d", "99999w"])
def test_an_expiry_that_is_none_is_refused(text):
    with pytest.raises(UsageError, match="--expires is"):
        expiry_after(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("keys: [", "cannot be read"),
        ("key: []", "key: unknown key"),
        ("keys: [{name: a}]", r"keys\.0\.sha256"),
        ("- a", "is"),
    ],
)
def test_a_broken_file_is_one_line(file, text, expected):
    file.write_text(text)
    with pytest.raises(UsageError, match=expected) as caught:
        read_keys(file)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_name_that_stands_twice_is_refused(file):
    create_key(file, "acme")
    row = file.read_text().split("\n", 1)[1]
    file.write_text(f"keys:\n{row}{row}")
    with pytest.raises(UsageError, match="name acme is there twice"):
        read_keys(file)
