"""What can be told from a URI alone."""

import pytest

from aicert.agent.fetch.source import split_revision


@pytest.mark.parametrize(
    ("uri", "without", "revision"),
    [
        ("file:a@b", "file:a@b", None),
        ("https://x/a@b?versionId=1", "https://x/a@b?versionId=1", None),
        ("hf://a/b", "hf://a/b", None),
        ("hf://datasets/a/b@refs%2Fpr%2F1/c@d", "hf://datasets/a/b/c@d", "refs/pr/1"),
        ("git+https://git@h/p", "git+https://git@h/p", None),
        ("git+https://git@h/p@v1#subdirectory=s", "git+https://git@h/p#subdirectory=s", "v1"),
        ("git+file:p@v1", "git+file:p", "v1"),
        ("s3://b/k?versionID=1", "s3://b/k", "1"),
        ("gs://b/k", "gs://b/k", None),
        ("abfss://c@a.example/k?versionid=2026-01-01T00:00:00Z", "abfss://c@a.example/k",
         "2026-01-01T00:00:00Z"),
    ],
)  # fmt: skip
def test_a_uri_and_the_revision_in_it_are_told_apart(
    uri: str, without: str, revision: str | None
) -> None:
    assert split_revision(uri) == (without, revision)
