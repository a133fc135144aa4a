"""Which address and which names a manifest offers to clients on this machine."""

from __future__ import annotations

import pytest

from reconciler.clients.offer import Key, Model, Offer
from reconciler.core.diagnostics import Refused
from reconciler.kinds.gateway.spec import ApiKey, GatewaySection
from reconciler.manifest.offered import choose, choose_key, distrusted, models, own, url
from tests.manifest.helper import meant

STACK = meant("""version: 1
models:
  embed: {source: "file:e", task: embedding}
  later: {source: "file:l", start: manual}
  gone: {source: "file:g", when: "false"}
  chat: {source: "file:c", context: 16k, aliases: [default, gpt-4o]}
  small: {source: "file:s", context: 2k}
providers:
  lab: {base_url: "http://lab:1/v1", models: ["llama:70b", "it's$(here)"]}
  open: {base_url: "http://open:1/v1"}
routes:
  smart: {targets: [chat, "lab/llama:70b"]}
  both: {targets: [chat, small]}
  vectors: {targets: [embed]}
""")
GONE = {("models", "gone")}


def names(found: list[Model]) -> list[str]:
    return [model.name for model in found]


def test_names_come_in_the_order_in_which_they_are_of_use() -> None:
    assert names(models(STACK, GONE)) == [
        "embed", "chat", "small", "smart", "both", "vectors", "lab/llama:70b", "lab/it's$(here)", "later", "default",
        "gpt-4o",
    ]  # fmt: skip
    assert "default" not in names(own(STACK, GONE))


def test_a_route_is_what_it_leads_to() -> None:
    known = {model.name: model for model in models(STACK, GONE)}
    assert known["both"] == Model("both", "chat", 2048)
    assert known["smart"] == Model("smart", "chat", 0), "one of its targets tells no window"
    assert known["vectors"].task == "embedding"
    assert known["gpt-4o"] == Model("gpt-4o", "chat", 16384)


def test_the_first_for_the_task_is_taken() -> None:
    assert choose(STACK, GONE, "", None).name == "chat"
    assert choose(STACK, GONE, "", None, "embedding").name == "embed"
    with pytest.raises(Refused, match="no rerank model"):
        choose(STACK, GONE, "", None, "rerank")
    with pytest.raises(Refused, match="add one below `models`"):
        choose(meant("version: 1\n"), (), "", None)


@pytest.mark.parametrize("name", ["gpt-4o", "lab/it's$(here)", "smart", "open/anything/at:all", "later"])
def test_every_name_that_may_be_asked_for_may_be_used(name: str) -> None:
    assert choose(STACK, GONE, name, None).name == name


@pytest.mark.parametrize(
    ("name", "words"),
    [("chta", "did you mean 'chat'?"), ("gone", "no model 'gone'"), ("lab/other", "no model"), ("open/", "no model"),
     ("nobody/x", "no model"), ("DEFAULT", "no model")],
)  # fmt: skip
def test_a_name_that_is_not_there_gets_the_nearest(name: str, words: str) -> None:
    with pytest.raises(Refused) as caught:
        choose(STACK, GONE, name, None)
    assert words in str(caught.value)


def test_a_key_limits_what_may_be_chosen() -> None:
    key = ApiKey(name="ci", key="env:CI", allow=("small", "smart"))
    assert choose(STACK, GONE, "", key).name == "small"
    with pytest.raises(Refused, match="key 'ci' may not ask for 'chat'"):
        choose(STACK, GONE, "chat", key)


def test_a_key_is_chosen_by_name() -> None:
    keys = (ApiKey(name="me", key="env:A"), ApiKey(name="ci", key="env:B"))
    gateway = GatewaySection(api_keys=keys)
    assert [choose_key(gateway, name) for name in ("", "me", "ci")] == [keys[0], keys[0], keys[1]]
    assert choose_key(GatewaySection(), "") is None
    with pytest.raises(Refused, match="did you mean 'ci'"):
        choose_key(gateway, "cii")
    with pytest.raises(Refused, match="leave out --key"):
        choose_key(GatewaySection(), "me")


@pytest.mark.parametrize(
    ("settings", "address"),
    [
        ({}, "http://127.0.0.1:1337/v1"),
        ({"host": "localhost", "port": 80, "prefix": "/api/v1"}, "http://localhost:80/api/v1"),
        ({"host": "::1"}, "http://[::1]:1337/v1"),
        ({"host": "0.0.0.0"}, "http://127.0.0.1:1337/v1"),
        ({"host": "0.0.0.0", "trusted_hosts": ("localhost",)}, "http://localhost:1337/v1"),
        ({"host": "::"}, "http://localhost:1337/v1"),
        ({"host": "10.0.0.7"}, "http://10.0.0.7:1337/v1"),
    ],
)
def test_the_address_is_one_that_clients_here_can_ask(settings: dict[str, object], address: str) -> None:
    keys = (ApiKey(name="me", key="env:A"),)
    gateway = GatewaySection(api_keys=keys, **settings)
    assert url(gateway) == address
    assert bool(distrusted(gateway)) == (settings.get("host") == "10.0.0.7")
    trusting = GatewaySection(api_keys=keys, host="10.0.0.7", trusted_hosts=("10.0.0.7:1337",))
    assert distrusted(trusting) == ""


def test_clients_of_the_other_dialect_need_a_prefix_that_ends_in_v1() -> None:
    def root(url: str) -> str:
        return Offer(url, Model("m"), (), Key()).root

    assert root("http://h:1/v1") == "http://h:1"
    assert root("http://h:1/api/v1") == "http://h:1/api"
    with pytest.raises(Refused, match="clients of the Anthropic API"):
        root("http://h:1/ai")
