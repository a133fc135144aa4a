"""Claude Code: environment variables, or the `env` object of settings.json, which may have no comments."""

from __future__ import annotations

from reconciler.clients.blocks import Mark
from reconciler.clients.client import Client, Target
from reconciler.clients.json_forms import Members
from reconciler.clients.offer import Offer, Places
from reconciler.clients.shells import Variable, printing

_TIERS = ("OPUS", "SONNET", "HAIKU")


def _variables(offer: Offer) -> tuple[Variable, ...]:
    return (
        Variable("ANTHROPIC_BASE_URL", offer.root),
        Variable("ANTHROPIC_AUTH_TOKEN", secret=True),
        Variable("ANTHROPIC_MODEL", offer.model.name),
        *(Variable(f"ANTHROPIC_DEFAULT_{tier}_MODEL", offer.model.name) for tier in _TIERS),
    )


def _config(offer: Offer | None, places: Places) -> Target:
    path = places.named("CLAUDE_CONFIG_DIR", places.home / ".claude") / "settings.json"
    values: dict[str, str] = {}
    if offer is not None:
        values = {f"env.{v.name}": v.value for v in _variables(offer) if not v.secret}
        if offer.key.literal:
            values["env.ANTHROPIC_AUTH_TOKEN"] = offer.key.literal
        else:  # `env` takes no references; a command that prints the key may stand beside it
            values["apiKeyHelper"] = printing(offer.key)
    secret = offer is not None and bool(offer.key.value)
    return Target(path, Members(Mark("claude-code", str(path)), "env", "RECONCILE_ENV", values, secret))


def _notes(offer: Offer, in_file: bool) -> tuple[str, ...]:
    where = "settings.json wins over variables of the shell" if in_file else "what `env` in settings.json says wins"
    return (where, "an ANTHROPIC_API_KEY that is set besides would be sent, too: unset it")


CLIENT = Client("claude-code", "Claude Code", _variables, _config, notes=_notes)
