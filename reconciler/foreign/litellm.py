"""LiteLLM's config.yaml: deployments become providers, the names that clients ask for become routes.

Deployments of one service with one address and one key are one provider. A name with several deployments shares
requests among them; one with fallbacks tries them in order.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reconciler.core.diagnostics import Refused, Where
from reconciler.core.section import ALIAS
from reconciler.core.section import NAME as NAME_PATTERN
from reconciler.foreign.draft import Draft, fit, no_key
from reconciler.foreign.home import Home
from reconciler.foreign.secrets import holds_secret, referenced
from reconciler.foreign.text import Text, listed, mapping, read, word

NAME = "LiteLLM"
_PRESETS = {
    "openai": "openai", "azure": "azure", "azure_ai": "azure", "anthropic": "anthropic", "gemini": "gemini",
    "openrouter": "openrouter", "mistral": "mistral", "groq": "groq", "huggingface": "huggingface", "xai": "xai",
    "deepseek": "deepseek", "together_ai": "together", "fireworks_ai": "fireworks", "nvidia_nim": "nvidia", "minimax":
    "minimax", "ollama": "ollama", "ollama_chat": "ollama", "lm_studio": "lmstudio", "hosted_vllm": "vllm", "vllm":
    "vllm",
}  # fmt: skip
_PLAIN = {"openai_like", "custom_openai", "text-completion-openai", "litellm_proxy", "llamafile", "openai"}
_LOCAL = {"ollama", "lmstudio", "vllm"}
_VARIABLES = {"gemini": "GEMINI_API_KEY", "together": "TOGETHERAI_API_KEY", "huggingface": "HF_TOKEN"}
_READ = {"model", "api_base", "base_url", "api_key", "custom_llm_provider", "litellm_credential_name", "weight"}


@dataclass(frozen=True, slots=True)
class _Deployment:
    """One entry of model_list: under which name, by whom, and what share it has."""

    name: str
    target: str
    weight: int


def gather(path: Path | None, home: Home) -> Draft:
    """`path` is config.yaml, or its folder. Raises Refused where there is none."""
    file = path or home.here
    if file.is_dir():
        names = ("litellm_config.yaml", "litellm.yaml", "litellm-config.yaml", "proxy_config.yaml", "config.yaml")
        file = next((file / name for name in names if (file / name).is_file()), file / names[0])
    text = read(file, "yaml")
    values = mapping(text.values)
    if not isinstance(values.get("model_list"), list):
        raise Refused(f"{file} is no configuration of LiteLLM: it has no `model_list`", hint="name another as PATH")
    draft = Draft(NAME, home, [home.shown(file)])
    reader = _Reader(draft, text, values)
    for i, model in enumerate(values["model_list"]):
        reader.deployment(i, mapping(model))
    reader.routes()
    reader.rest()
    return draft


class _Reader:
    def __init__(self, draft: Draft, text: Text, values: dict[str, Any]) -> None:
        self.draft, self.text, self.values = draft, text, values
        self.router, self.settings = mapping(values.get("router_settings")), mapping(values.get("litellm_settings"))
        self.general = mapping(values.get("general_settings"))
        self.providers: dict[tuple[str, str, str], str] = {}
        self.deployments: list[_Deployment] = []
        self.left: dict[str, set[str]] = {}

    def deployment(self, i: int, model: dict[str, Any]) -> None:
        where = self.text.where("model_list", i)
        name = word(model.get("model_name"))
        params = {**self._credential(mapping(model.get("litellm_params"))), **mapping(model.get("litellm_params"))}
        called = word(params.get("model"))
        what = f"the model {name or i + 1}"
        if not name or not called:
            self.draft.leave(what, "it has no model_name, or no model", "", where)
            return
        service, model_id = _service(called, word(params.get("custom_llm_provider")))
        provider = self._provider(service, params, what, where)
        if not provider:
            return
        offered = self.draft.entries["providers"][provider]
        if model_id == "*" or not re.fullmatch(r"[!-~]{1,200}", model_id):
            offered["models"] = "discover"
            if model_id != "*":
                self.draft.leave(what, "its name cannot be written here", "", where)
            return
        if offered.setdefault("models", []) != "discover" and model_id not in offered["models"]:
            offered["models"].append(model_id)
        weight = params.get("weight", params.get("rpm", 1))
        share = weight if isinstance(weight, int) and not isinstance(weight, bool) and 1 <= weight <= 1000 else 1
        self.deployments.append(_Deployment(name, f"{provider}/{model_id}", share))
        for key in set(params) - _READ:
            self.left.setdefault(key, set()).add(name)

    def _credential(self, params: dict[str, Any]) -> dict[str, Any]:
        named = word(params.get("litellm_credential_name"))
        for one in map(mapping, listed(self.values.get("credential_list"))):
            if named and word(one.get("credential_name")) == named:
                return mapping(one.get("credential_values"))
        return {}

    def _provider(self, service: str, params: dict[str, Any], what: str, where: Where) -> str:
        """The name of the provider of a deployment; empty where it has none here, and it is said why."""
        base = word(params.get("api_base")) or word(params.get("base_url"))
        if base.startswith("os.environ/"):
            variable = base.removeprefix("os.environ/")
            base = self.draft.home.environ.get(variable, "")
            if not base:
                why = f"its address is in the variable {variable}, which is not set"
                self.draft.leave(what, why, "add it to `providers`", where)
                return ""
        if base and (holds_secret(base) or not re.fullmatch(r"https?://[^\s@/?]+(/[^\s?]*)?", base)):
            self.draft.hide(base)
            self.draft.leave(what, "its address is not a plain http(s) address", "add it to `providers`", where)
            return ""
        key = word(params.get("api_key"))
        at = service, base, key
        if at not in self.providers:
            entry = self._address(service, base, what, where)
            if not entry:
                return ""
            plain = _PRESETS.get(service, service)
            name = self.draft.free(
                "providers", _host(base) if base and plain not in _LOCAL and plain != "azure" else plain
            )
            if held := self._key(entry, key, name, where):
                entry["api_key"] = held
            self.providers[at] = self.draft.add("providers", name, entry)
        return self.providers[at]

    def _address(self, service: str, base: str, what: str, where: Where) -> dict[str, Any]:
        preset = _PRESETS.get(service)
        base = base.rstrip("/")
        if service in _PLAIN and base:
            return {"base_url": base}
        if preset == "azure":
            versions = "its API without versions is used"
            self.draft.leave(f"api_version of {what}", versions, "", where)
            return {"preset": preset, **({"base_url": f"{base}/openai/v1"} if base else {})}
        if preset in _LOCAL:
            return {"preset": preset, **({"base_url": base if base.endswith("/v1") else f"{base}/v1"} if base else {})}
        if preset:
            return {"preset": preset, **({"base_url": base} if base else {})}
        if base:
            return {"base_url": base}
        why = f"the service {service!r} is not one that is known here"
        self.draft.leave(what, why, "add it to `providers` with its `base_url`", where)
        return {}

    def _key(self, entry: dict[str, Any], key: str, name: str, where: Where) -> str:
        purpose = f"the key of provider {name}"
        if own := referenced(key):
            return self.draft.variable(own, purpose, where)
        if not no_key(key):
            return self.draft.secret(key, f"{name}_API_KEY".upper().replace("-", "_").replace(".", "_"), purpose, where)
        preset = str(entry.get("preset", ""))
        if preset and preset not in _LOCAL:  # it looks for the usual variable by itself
            return self.draft.variable(_VARIABLES.get(preset, f"{preset.upper()}_API_KEY"), purpose, where)
        return ""

    # -- names ---------------------------------------------------------------------------------------------------

    def routes(self) -> None:
        targets: dict[str, list[_Deployment]] = {}
        for one in self.deployments:
            targets.setdefault(one.name, []).append(one)
        fallbacks = self._fallbacks()
        for name, own in targets.items():
            self._route(name, own, [t for other in fallbacks.get(name, []) for t in targets.get(other, [])])
        for alias, to in mapping(self.router.get("model_group_alias")).items():
            group = word(mapping(to).get("model")) or word(to)
            if group in targets:
                self._route(alias, targets[group], [])

    def _fallbacks(self) -> dict[str, list[str]]:
        out: dict[str, list[str]] = {}
        for said in (self.settings, self.router):
            for one in map(mapping, listed(said.get("fallbacks"))):
                for name, others in one.items():
                    out.setdefault(name, []).extend(word(other) for other in listed(others))
        return out

    def _route(self, name: str, own: list[_Deployment], after: list[_Deployment]) -> None:
        where = self.text.where("model_list")
        if not after and len(own) == 1 and own[0].target == name:
            return
        plain = [d.target for d in [*own, *after] if re.fullmatch(ALIAS, d.target)]
        targets: list[Any] = list(dict.fromkeys(plain))
        if len(plain) < len(own) + len(after):
            self.draft.leave(f"targets of {name}", "a target's name cannot be written here", "", where)
        if len(own) > 1 and not after and len(targets) > 1:
            targets = [{"to": t, "weight": next(d.weight for d in own if d.target == t)} for t in targets]
        elif len(own) > 1 and after:
            why = "a route shares by weight or has fallbacks, not both: all are tried in order"
            self.draft.leave(f"the shares of {name}", why, "", where)
        if not targets:
            return
        given = self.draft.add("routes", name, {"targets": targets})
        if given != name:
            clear = "; clients ask for that" if re.fullmatch(NAME_PATTERN, given) else ""
            self.draft.leave(f"the name {name!r}", f"a route cannot be called so; it is {given}{clear}", "", where)

    # -- the rest ------------------------------------------------------------------------------------------------

    def rest(self) -> None:
        for key, names in sorted(self.left.items()):
            what = f"litellm_params.{key} of {', '.join(sorted(names)[:5])}"
            self.draft.leave(what, "there is no key for it", "clients may send it with each request")
        if key := word(self.general.get("master_key")):
            where, purpose = self.text.where("general_settings", "master_key"), "the key that clients show"
            own = referenced(key)
            held = (
                self.draft.variable(own, purpose, where)
                if own
                else self.draft.secret(key, "LITELLM_MASTER_KEY", purpose, where)
            )
            self.draft.gateway["api_keys"] = [{"name": "master", "key": held}]
        done = {"router_settings": {"fallbacks", "model_group_alias"}, "litellm_settings": {"fallbacks"},
                "general_settings": {"master_key"}}  # fmt: skip
        for section, known in done.items():
            if rest := sorted(set(mapping(self.values.get(section))) - known):
                self.draft.leave(f"{section}: {', '.join(rest[:10])}", "there is no key for it", "",
                                 self.text.where(section, rest[0]))  # fmt: skip
            for value in mapping(self.values.get(section)).values():
                self.draft.hide(word(value) if holds_secret(word(value)) else "")
        if variables := mapping(self.values.get("environment_variables")):
            why = "a manifest sets no variables for others"
            names_ = ", ".join(sorted(variables)[:10])
            self.draft.leave(f"environment_variables: {names_}", why, "set those that are needed",
                             self.text.where("environment_variables"))  # fmt: skip
            for value in variables.values():
                self.draft.hide(word(value))
        known_ = {"model_list", "credential_list", "environment_variables", *done}
        for key in sorted(key for key in set(self.values) - known_ if not key.startswith("x-")):
            self.draft.leave(f"`{key}`", "there is no key for it", "", self.text.where(key))


def _service(model: str, told: str) -> tuple[str, str]:
    """`groq/llama3` → (groq, llama3); one without a service is OpenAI's or Anthropic's, by its name."""
    if told:
        return told, model.removeprefix(f"{told}/")
    service, slash, rest = model.partition("/")
    if slash and service != "*":
        return service, rest
    return ("anthropic" if model.startswith("claude") else "openai"), model


def _host(base: str) -> str:
    found = re.match(r"https?://(\[[^\]]+\]|[^/:]+)", base)
    return fit(found[1]) if found else ""
