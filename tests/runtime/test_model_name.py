"""A name is refused, before any work, exactly if a daemon would refuse it."""

from __future__ import annotations

from functools import cache

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from packager.errors import InvalidNameError
from packager.runtime.model_name import qualified_name, split_tag, validate_name
from tests.daemon import OllamaDaemon

GOOD = [
    "mymodel",
    "MyModel:q5_k_m",
    "me/mymodel",
    "registry.example.com:5000/me/my.model:v1.0",
    "_x",
    "a" * 80,
    "https://example.com/me/mymodel",
]
BAD = [
    "",
    " ",
    "my model",
    "-x",
    ".x",
    "a" * 81,
    "model:",
    ":tag",
    "a:b:c",
    "model:t@g",
    "/model",
    "me/",
    "m.e/model",
    "a//b",
    "modèle",
    "model\n",
    "x/a/b/c/d",
    "model:" + "t" * 81,
    "h" * 351 + "/me/model",
]


def is_accepted(name: str) -> bool:
    try:
        validate_name(name)
    except InvalidNameError:
        return False
    return True


@cache
def http_client() -> httpx.Client:
    """One client for all requests: to create one takes longer than a request."""
    return httpx.Client(trust_env=False)


def daemon_accepts(daemon: OllamaDaemon, name: str) -> bool:
    """The daemon checks the name first; then it finds that the request has no files."""
    answer = http_client().post(f"http://{daemon.host}/api/create", json={"model": name or " "})
    complaint = answer.json()["error"]
    assert complaint in ("invalid model name", "neither 'from' or 'files' was specified")
    return bool(complaint != "invalid model name")


@pytest.mark.parametrize("name", GOOD)
def test_a_name_that_ollama_accepts_is_returned_unchanged(name: str) -> None:
    assert validate_name(name) == name


@pytest.mark.parametrize("name", BAD)
def test_a_name_that_ollama_refuses_is_a_usage_error(name: str) -> None:
    with pytest.raises(InvalidNameError) as caught:
        validate_name(name)
    assert caught.value.exit_code == 2
    assert repr(name) in caught.value.message
    assert caught.value.next_step


@pytest.mark.parametrize("name", GOOD + BAD)
def test_the_daemon_agrees(ollama_daemon: OllamaDaemon, name: str) -> None:
    assert is_accepted(name) == daemon_accepts(ollama_daemon, name)


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(name=st.text(alphabet="aZ9_-.:/@ é", min_size=1, max_size=12))
def test_the_daemon_agrees_on_any_name(ollama_daemon: OllamaDaemon, name: str) -> None:
    assert is_accepted(name) == daemon_accepts(ollama_daemon, name)


@pytest.mark.parametrize("tag", ["cloud", "Local", "8b-cloud"])
def test_a_tag_that_ollama_takes_for_a_place_is_refused(tag: str) -> None:
    with pytest.raises(InvalidNameError, match=tag):
        validate_name(f"mymodel:{tag}")


def test_a_port_is_not_a_tag() -> None:
    assert split_tag("host:5000/me/model") == ("host:5000/me/model", None)
    assert split_tag("host:5000/me/model:v1") == ("host:5000/me/model", "v1")


def test_a_short_name_equals_its_long_form() -> None:
    assert qualified_name("MyModel") == qualified_name("registry.ollama.ai/library/mymodel:latest")
