"""Secrets: what a plugin gets, and what is recorded."""

from typing import Any

import pytest
from pydantic import Field, field_validator, model_validator

from torchyard import ModelParams, hookimpl
from torchyard.core.config.resolve import resolve
from torchyard.core.config.secrets import is_secret
from torchyard.core.errors import UserError
from torchyard.core.hosting.host import Host
from torchyard.core.hosting.sources import Source, builtin_sources


class Guarded(ModelParams):
    """A model behind a token."""

    hub_token: str = ""
    tokens: int = 3
    auth: dict[str, Any] = Field({})
    servers: list[dict[str, str]] = Field([])
    greeting: str = ""

    @field_validator("hub_token")
    @classmethod
    def _long(cls, value):
        if value and len(value) < 8:
            raise ValueError("is too short")
        return value

    def build(self, input_shape, num_classes):
        return self.hub_token


def guarded(params=Guarded, **settings):
    own = Host()
    for source, find in builtin_sources():
        own.load(source, find, builtin=True)
    plugin = type(
        "Plugin",
        (),
        {"register_models": hookimpl(staticmethod(lambda register: register("guarded", params)))},
    )
    own.load(Source("mine", "mine 1.0", "mine==1.0"), lambda: plugin)
    return resolve({"dataset": "digits", "model": {"name": "guarded", **settings}}, own)


def test_a_secret_reaches_the_plugin_and_nothing_that_is_recorded(monkeypatch):
    monkeypatch.setenv("HUB_TOKEN", "hunter2hunter2")
    resolved = guarded(hub_token="env:HUB_TOKEN", tokens=5)
    assert resolved.model.build((1,), 2) == "hunter2hunter2"
    assert resolved.config.model.model_dump()["hub_token"] == "env:HUB_TOKEN"
    assert "hunter2" not in resolved.config.model_dump_json()
    # What was recorded is resolved again, as in the worker process, when resumed and when deployed.
    again = guarded(**resolved.config.model.model_dump(exclude={"name"}))
    assert again.model.build((1,), 2) == "hunter2hunter2"


def test_a_secret_that_is_written_down_is_refused_without_repeating_it(monkeypatch):
    for given_settings, says in (
        ({"hub_token": "hunter2hunter2"}, "model.hub_token: is a secret"),
        ({"hub_token": "env:NO_SUCH_ONE"}, "the environment variable NO_SUCH_ONE is not set"),
    ):
        with pytest.raises(UserError, match=says) as caught:
            guarded(**given_settings)
        assert "hunter2" not in str(caught.value)
    monkeypatch.setenv("HUB_TOKEN", "hunter2")
    with pytest.raises(UserError, match=r"^model.hub_token: is too short$"):
        guarded(hub_token="env:HUB_TOKEN")
    assert guarded().config.model.model_dump()["hub_token"] == ""


def test_a_secret_at_any_depth_is_read_and_not_recorded(monkeypatch):
    monkeypatch.setenv("HUB_TOKEN", "hunter2hunter2")
    given_settings = {
        "auth": {"user": "me", "oauth": {"token": "env:HUB_TOKEN", "scopes": ["a"]}},
        "servers": [{"url": "x"}, {"url": "y", "api_key": "env:HUB_TOKEN"}],
    }
    resolved = guarded(**given_settings)
    assert resolved.model.auth["oauth"] == {"token": "hunter2hunter2", "scopes": ["a"]}
    assert resolved.model.servers[1]["api_key"] == "hunter2hunter2"
    recorded = resolved.config.model.model_dump(exclude={"name"})
    assert given_settings.items() <= recorded.items()
    assert guarded(**recorded).model == resolved.model


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"auth": {"token": "hunter2"}}, "model.auth.token: is a secret"),
        ({"servers": [{}, {"password": "hunter2"}]}, "model.servers.1.password: is a secret"),
        ({"auth": {"credentials": {"key": "hunter2"}}}, "model.auth.credentials.key: is a secret"),
        ({"auth": {"secret": ["hunter2"]}}, "model.auth.secret.0: is a secret"),
        ({"auth": {"token": "env:NO_SUCH_ONE"}}, "variable NO_SUCH_ONE is not set"),
    ],
)
def test_a_secret_that_is_written_down_at_any_depth_is_refused(settings, says):
    with pytest.raises(UserError, match=says) as caught:
        guarded(**settings)
    assert "hunter2" not in str(caught.value)


def test_what_a_plugin_makes_of_a_secret_is_not_recorded_or_printed(monkeypatch):
    monkeypatch.setenv("HUB_TOKEN", "hunter2hunter2")

    class Careless(Guarded):
        """Puts its secret everywhere."""

        @model_validator(mode="after")
        def _copied(self):
            if self.tokens == 0:
                raise ValueError(f"no tokens for {self.hub_token}")
            object.__setattr__(self, "greeting", f"I am {self.hub_token}")
            return self

    resolved = guarded(Careless, hub_token="env:HUB_TOKEN")
    assert "hunter2" not in resolved.config.model_dump_json()
    with pytest.raises(UserError, match=r"no tokens for \*\*\*"):
        guarded(Careless, hub_token="env:HUB_TOKEN", tokens=0)


@pytest.mark.parametrize(
    ("name", "secret"),
    [
        ("token", True),
        ("hub_token", True),
        ("API_KEY", True),
        ("apikey", True),
        ("password", True),
        ("tokens", False),
        ("token_count", False),
        ("secretary", False),
        ("keys", False),
    ],
)
def test_which_names_are_secrets(name, secret):
    assert is_secret(name) is secret
