"""Promises about secrets: they reach the source and nothing else."""

import traceback
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aicert.agent.fetch import InputRequest, errors, resolve
from aicert.agent.fetch.errors import redact, secret_values
from tests.agent.fetch.conftest import QUICK, Bring
from tests.agent.fetch.web import Page, Web, hang_up, refuse

CANARY = "c4nary/+=value"


@pytest.mark.parametrize(
    "text",
    [
        "https://user:{}@host/x",
        "https://{}@github.com/o/r",
        "git+https://oauth2:{}@host/x",
        "https://h/x?sv=2024&sig={}&se=1",
        "https://h/x?X-Amz-Signature={}",
        "https://h/x?a=1&access_token={}#f",
        "https://h/x?api_key={} failed",
        "Authorization: Bearer {}",
        "basic {}",
        "AccountName=a;AccountKey={};EndpointSuffix=x",
        "SharedAccessSignature={}",
    ],
)
def test_what_looks_like_a_secret_is_cut(text: str) -> None:
    assert "s3cretvalue" not in redact(text.format("s3cretvalue"))
    assert "***" in redact(text.format("s3cretvalue"))


@pytest.mark.parametrize(
    "text",
    [
        "https://host/path?revision=main&download=true",
        "abfss://container@account.dfs.core.windows.net/path",
        "git+https://git@host/owner/repo@v1",
        "hf://datasets/owner/name@main/train.csv",
        "s3://bucket/key?versionId=abc",
        "git+https://host:8443/owner/repo@v1",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert redact(text) == text


@given(st.text(min_size=4, max_size=30), st.text(max_size=30), st.text(max_size=30))
def test_a_known_secret_never_passes(secret: str, before: str, after: str) -> None:
    # A secret that is part of the mark itself cannot be told from it.
    if secret.strip("*"):
        assert secret not in redact(f"{before}{secret}{after}", [secret]).replace("***", "")


def test_every_string_in_the_secrets_is_one() -> None:
    secrets = {
        "token": "aaaa",
        "headers": {"X-Key": "bbbbb"},
        "storage_options": {
            "key": "cccccc",
            "token": {"private": ["ddddddd"]},
            "account_name": "me",
        },
    }
    assert secret_values(secrets) == ["ddddddd", "cccccc", "bbbbb", "aaaa"]


@pytest.mark.parametrize(
    "uri",
    [
        "https://user:s3cretvalue@host.invalid/x",
        "https://s3cretvalue@host.invalid/x",
        "https://host.invalid/x?sv=1&sig=s3cretvalue",
        "https://host.invalid/x?token=s3cretvalue",
        "git+https://x:s3cretvalue@host.invalid/r",
        "git+https://host.invalid/r?private_token=s3cretvalue",
        "s3://b/k?X-Amz-Signature=s3cretvalue",
        "az://c/k?sig=s3cretvalue",
    ],
)
def test_a_credential_in_a_uri_is_refused_and_not_repeated(uri: str) -> None:
    request = InputRequest("it", uri)
    with pytest.raises(errors.CredentialsError) as caught:
        resolve(request, base=None, retry=QUICK)
    for shown in (*_shown(caught.value), repr(request)):
        assert "s3cretvalue" not in shown
    assert "leaked" in (caught.value.advice or "")


def test_a_uri_that_a_password_makes_unreadable_is_not_repeated() -> None:
    request = InputRequest("it", f"https://user:{CANARY}@host.invalid/x")
    with pytest.raises(errors.UnresolvableError) as caught:
        resolve(request, base=None, retry=QUICK)
    for shown in (*_shown(caught.value), repr(request)):
        assert "c4nary" not in shown


@pytest.mark.parametrize("fault", [refuse(403), refuse(404), refuse(503), hang_up])
def test_no_failure_shows_the_secrets_that_were_sent(web: Web, bring: Bring, fault: Any) -> None:
    web.pages["/x"] = Page(b"x", faults=[fault] * 9)
    events: list[dict[str, object]] = []
    secrets = {"token": CANARY, "headers": {"X-Key": f"{CANARY}2"}}
    with pytest.raises(errors.FetchError) as caught:
        bring(f"{web.url}/x", secrets=secrets, on_event=events.append)
    assert web.asked[0].headers["authorization"] == f"Bearer {CANARY}"
    for shown in (*_shown(caught.value), repr(events)):
        assert CANARY not in shown


def test_a_source_that_repeats_the_secret_is_not_quoted(web: Web, bring: Bring) -> None:
    there = f"/y?sig={CANARY}"
    web.pages["/x"] = Page(b"", faults=[refuse(302, Location=there)] * 9)
    web.pages["/y"] = Page(b"", faults=[refuse(500)] * 9)
    with pytest.raises(errors.FetchError) as caught:
        bring(f"{web.url}/x", secrets={"token": CANARY})
    for shown in _shown(caught.value):
        assert CANARY not in shown


def test_a_source_that_gives_the_secret_back_as_its_own_is_not_quoted(
    web: Web, bring: Bring
) -> None:
    web.pages["/x"] = Page(b"x", {"Content-Encoding": CANARY})
    with pytest.raises(errors.UnresolvableError) as caught:
        bring(f"{web.url}/x", secrets={"headers": {"X-Key": CANARY}})
    for shown in _shown(caught.value):
        assert CANARY not in shown


def test_what_is_fetched_with_secrets_does_not_hold_them(web: Web, bring: Bring) -> None:
    web.pages["/x"] = Page(b"x")
    got = bring(f"{web.url}/x", secrets={"token": CANARY})
    assert CANARY not in repr(got)
    assert CANARY not in repr(got.resolved.files)


def test_an_unknown_kind_of_secret_is_refused_by_name_alone(web: Web, bring: Bring) -> None:
    with pytest.raises(errors.UnresolvableError) as caught:
        bring(f"{web.url}/x", secrets={"tokn": CANARY})
    assert caught.value.got == "tokn"


def _shown(error: errors.FetchError) -> list[str]:
    """Return every text that an error may be shown as."""
    return [
        str(error),
        repr(error),
        repr(error.to_json()),
        error.diagnostics(),
        "".join(traceback.format_exception(error)),
    ]
