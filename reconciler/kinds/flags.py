"""What an engine's flags are, and how `options` of a manifest become its arguments. Pure.

An option is written by a flag's long name, with underscores or dashes. What the engine says of its flags decides how
it is rendered, in four steps: the spelling itself; another spelling of the same flag, from before or after it was
renamed (`RENAMED`); the opposite of a switch that has only one of both; else it is refused with the nearest names.
Where the engine says nothing, options are passed as they are.

The names and dates are those of llama.cpp's own argument parser and its change log.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from reconciler.kinds.options import Option, Options, Scalar, refused, spelling


@dataclass(frozen=True, slots=True)
class Flag:
    """One flag as an engine's help describes it.

    `names` are its spellings with their dashes, `negations` those that switch it off. `value` is how its value is
    called (`N`, `FNAME`; empty: a switch), `choices` all that it may be where the help says so, `default` and `env`
    what it says of them. `removed` is what it says where the flag is gone and only its name is left.
    """

    names: tuple[str, ...]
    negations: tuple[str, ...] = ()
    value: str = ""
    choices: tuple[str, ...] = ()
    default: str = ""
    env: str = ""
    text: str = ""
    removed: str = ""

    @property
    def long(self) -> str:
        return next((name for name in self.names if name.startswith("--")), self.names[0])

    @property
    def repeated(self) -> bool:
        """Whether it may be given more than once."""
        said = ("can be repeated", "be repeated", "multiple times", "multiple overrides", "specify multiple")
        return not self.joined and (any(s in self.text for s in said) or self.long.lstrip("-") in REPEATED)

    @property
    def joined(self) -> bool:
        """Whether one value holds several, with commas between them."""
        return "comma-separated" in self.text or "comma separated" in self.text or ",.." in self.value

    @property
    def parts(self) -> int:
        """How many arguments its value is: one, but for `START END`."""
        return max(1, len(self.value.split())) if self.value.isupper() else 1

    @property
    def kind(self) -> str:
        """switch, choice, whole (a whole number), number, or text: as far as the help tells."""
        if not self.value:
            return "switch"
        if self.choices:
            return "choice"
        plain = self.value in ("N", "P", "SEED", "INDEX", "PORT", "SIMILARITY", "SECONDS", "L", "<0...100>")
        if not plain or self.joined or self.repeated:
            return "text"
        return "whole" if _whole(self.default.split(",")[0].strip()) else "number"

    def form(self) -> str:
        """`--flash-attn [on|off|auto]`: how it is written."""
        return f"{', '.join((*self.names, *self.negations))} {self.value}".rstrip()


@dataclass(frozen=True)
class FlagSet:
    """The flags that an engine says it has. `version` is for people (`b6000`), `why` says why none are known."""

    flags: tuple[Flag, ...] = ()
    version: str = ""
    why: str = ""

    @cached_property
    def spelled(self) -> Mapping[str, tuple[Flag, bool]]:
        """By spelling: the flag, and whether this spelling switches it off. Those that were removed are none."""
        out: dict[str, tuple[Flag, bool]] = {}
        for flag in self.flags:
            if not flag.removed:
                for negated, names in ((False, flag.names), (True, flag.negations)):
                    out |= {name: (flag, negated) for name in names if name not in out}
        return out

    @cached_property
    def gone(self) -> Mapping[str, str]:
        """By spelling: what the help says of a flag that was removed."""
        return {name: flag.removed for flag in self.flags if flag.removed for name in flag.names}

    @property
    def known(self) -> bool:
        return bool(self.flags)

    def has(self, name: str) -> bool:
        return name in self.spelled

    def lookup(self, option: str) -> tuple[Flag, bool] | None:
        """The flag of an option, also by a name from another version or by its opposite; None where there is none."""
        name = spelling(option)
        others = (f"--{other}" for other in (name, *SAME.get(name, ()), name.removeprefix("no-"), f"no-{name}"))
        return next((self.spelled[other] for other in others if other in self.spelled), None)


class Unfit(ValueError):
    """An option that this engine cannot take: what is wrong with it, without its name."""


# Long names of the same flag in different versions. The first that the engine has is used.
RENAMED: tuple[tuple[str, ...], ...] = (
    ("no-webui", "no-ui"),  # since b9222
    ("draft", "draft-n", "draft-max", "spec-draft-n-max"),
    ("draft-min", "draft-n-min", "spec-draft-n-min"),
    ("draft-p-min", "spec-draft-p-min"),
    ("draft-p-split", "spec-draft-p-split"),
    ("gpu-layers-draft", "n-gpu-layers-draft", "spec-draft-ngl"),
    ("device-draft", "spec-draft-device"),
    ("threads-draft", "spec-draft-threads"),
    ("threads-batch-draft", "spec-draft-threads-batch"),
    ("cache-type-k-draft", "spec-draft-type-k"),
    ("cache-type-v-draft", "spec-draft-type-v"),
    ("override-tensor-draft", "spec-draft-override-tensor"),
    ("cpu-moe-draft", "spec-draft-cpu-moe"),
    ("n-cpu-moe-draft", "spec-draft-n-cpu-moe", "spec-draft-ncmoe"),
    ("swa-checkpoints", "ctx-checkpoints"),
    ("verbosity", "log-verbosity"),
    ("verbose", "log-verbose"),
    ("predict", "n-predict"),
    ("temp", "temperature"),
    ("typical", "typical-p"),
    ("top-nsigma", "top-n-sigma"),
    ("sampling-seq", "sampler-seq"),
    ("spec-ngram-size-n", "spec-ngram-simple-size-n"),
    ("spec-ngram-size-m", "spec-ngram-simple-size-m"),
    ("spec-ngram-min-hits", "spec-ngram-simple-min-hits"),
)
SAME: Mapping[str, tuple[str, ...]] = {name: group for group in RENAMED for name in group}

# What is gone without a successor, and what to do instead.
GONE: Mapping[str, str] = {
    "defrag-thold": "the cache no longer needs it; leave it out",
    "grp-attn-n": "self-extend was removed; use rope_scaling",
    "grp-attn-w": "self-extend was removed; use rope_scaling",
    "log-format": "use log_prefix and log_timestamps",
    "system-prompt-file": "send a system message with each request",
    "penalize-nl": "newlines are no longer penalized apart; leave it out",
    "tfs": "tail-free sampling was removed; use min_p or top_p",
    "no-mmap": "use load_mode: none",
    "mmap": "use load_mode",
    "mlock": "use load_mode: mlock",
}

# May be given again although no help says so.
REPEATED = {"lora", "lora-scaled", "control-vector", "control-vector-scaled", "override-kv", "override-tensor",
            "logit-bias", "dry-sequence-breaker", "reverse-prompt", "image"}  # fmt: skip
TRUE, FALSE = ("on", "true", "enabled", "yes"), ("off", "false", "disabled", "no")

# What a help says of flags that no table can foresee, and why they are not for a server of ours.
UNWELCOME = (
    ("download weights", "fetches a model by itself, which nobody would have planned or checked: write a `source`"),
    ("and exit", "prints something and ends, so that nothing would be served"),
)


def unfit(options: Options, flags: FlagSet, engine: str) -> tuple[str, ...]:
    """What of the options this engine cannot take, a sentence each; none where its flags are not known."""
    out = []
    for name, value in _translated(options, flags):
        try:
            _arguments(name, value, flags, engine)
        except Unfit as error:
            out.append(f"options.{name}: {error}")
    return tuple(out)


def rendered(options: Options, flags: FlagSet, engine: str = "the engine") -> list[str]:
    """The arguments, in the order of the options. Raises Unfit."""
    return [word for name, value in _translated(options, flags) for word in _arguments(name, value, flags, engine)]


def described(flag: Flag) -> str:
    """One line for people: `--flash-attn [on|off|auto]  set Flash Attention use (default: auto)`."""
    return f"{flag.form()}  {flag.text}".rstrip()


def _arguments(name: str, value: Option, flags: FlagSet, engine: str) -> list[str]:
    wanted = f"--{spelling(name)}"
    if not flags.known:
        return _unchecked(wanted, value)
    if wanted in flags.spelled:
        return _spelled(wanted, value, flags)
    for other in SAME.get(spelling(name), ()):
        if flags.has(f"--{other}"):
            return _spelled(f"--{other}", value, flags)
    opposite = f"--{spelling(name)[3:]}" if wanted.startswith("--no-") else f"--no-{spelling(name)}"
    if flags.has(opposite) and not flags.spelled[opposite][0].value:
        return _spelled(opposite, not _truth(value, wanted), flags)
    label = f"{engine} ({flags.version})" if flags.version else engine
    if said := flags.gone.get(wanted) or GONE.get(spelling(name)):
        raise Unfit(f"{label} no longer has {wanted}: {said}")
    raise Unfit(f"{label} has no {wanted}{_nearest(wanted, flags)}")


def _nearest(wanted: str, flags: FlagSet) -> str:
    short = flags.spelled.get(wanted[1:])  # `ngl`, which is -ngl
    if short and (why := refused(short[0].long[2:])):
        return f"; {wanted[1:]} is {short[0].long}, which {why}"
    known = [name for name, (flag, _) in flags.spelled.items() if name.startswith("--") and not _ours(flag)]
    close = [short[0].long] if short else difflib.get_close_matches(wanted, sorted(known), n=3, cutoff=0.6)
    return f"; nearest: {', '.join(close)}" if close else ""


def _ours(flag: Flag) -> bool:
    return any(refused(name.lstrip("-")) for name in flag.names)


def _unchecked(wanted: str, value: Option) -> list[str]:
    if value is True:
        return [wanted]
    if value is False:
        return []
    return [word for one in (value if isinstance(value, tuple) else (value,)) for word in (wanted, str(one))]


def _spelled(spelled: str, value: Option, flags: FlagSet) -> list[str]:
    """The arguments for a spelling that the engine has. Raises Unfit."""
    flag, negated = flags.spelled[spelled]
    if why := next((why for said, why in UNWELCOME if said in flag.text), ""):
        raise Unfit(f"{spelled} {why}")
    if not flag.value:
        return _switch(flag, spelled, negated, value, flags)
    if isinstance(value, tuple):
        return _several(flag, spelled, value)
    if flag.parts > 1:
        raise Unfit(f"{spelled} takes {flag.parts} values ({flag.value}); write a list")
    return [spelled, _value(flag, spelled, value)]


def _switch(flag: Flag, spelled: str, negated: bool, value: Option, flags: FlagSet) -> list[str]:
    if value == "auto" and spelled == "--flash-attn":
        return []  # before b6325 there was no auto: what is left out is the engine's own choice
    if _truth(value, spelled):
        return [spelled]
    others = flag.names if negated else flag.negations
    if other := next((name for name in others if name.startswith("--")), ""):
        return [other]
    apart = f"--no-{spelled[2:]}"
    if flags.has(apart):
        return [apart]
    if flag.default in TRUE and not spelled.startswith("--no-"):
        raise Unfit(f"{spelled} is on in this engine, and there is no flag to switch it off")
    return []  # a switch without an opposite is off unless it is given


def _truth(value: Option, spelled: str) -> bool:
    """YAML's own truths, and the words that engines use. Raises Unfit."""
    if not _is_truth(value):
        raise Unfit(f"{spelled} is a switch; write true or false (got {_shown(value)})")
    return value if isinstance(value, bool) else str(value).lower() in TRUE


def _several(flag: Flag, spelled: str, values: tuple[Scalar, ...]) -> list[str]:
    if flag.parts > 1:
        if len(values) != flag.parts:
            raise Unfit(f"{spelled} takes {flag.parts} values ({flag.value}), and not {len(values)}")
        return [spelled, *(_value(flag, spelled, value) for value in values)]
    texts = [_value(flag, spelled, value) for value in values]
    if flag.joined:
        if cut := next((text for text in texts if "," in text and len(texts) > 1), ""):
            raise Unfit(f"{spelled} separates its values by commas, and {cut!r} has one")
        return [spelled, ",".join(texts)]
    if not flag.repeated:
        raise Unfit(f"{spelled} takes one value, and not a list")
    return [word for text in texts for word in (spelled, text)]


def _value(flag: Flag, spelled: str, value: Scalar) -> str:
    """The text of one value. Raises Unfit."""
    if flag.choices:
        return _chosen(flag, spelled, value)
    if isinstance(value, bool):
        raise Unfit(f"{spelled} takes a value ({flag.value}), and not {_shown(value)}")
    text = str(value)
    if flag.kind in ("whole", "number") and f"'{text}'" not in flag.text and not text.startswith("0x"):
        if not _number(text):
            raise Unfit(f"{spelled} takes a number (got {_shown(value)})")
        if abs(float(text)) >= 1 << 63:
            raise Unfit(f"{spelled} cannot take so large a number ({text})")
        if flag.kind == "whole" and not _whole(text):
            raise Unfit(f"{spelled} takes a whole number (got {_shown(value)})")
    return text


def _chosen(flag: Flag, spelled: str, value: Scalar) -> str:
    words = TRUE if value is True else FALSE if value is False else (str(value),)
    words = (*words, "1" if value else "0") if isinstance(value, bool) else words
    for word in words:
        if word in flag.choices:
            return word
    close = difflib.get_close_matches(str(value), flag.choices, n=1)
    meant = f"; did you mean {close[0]!r}?" if close else ""
    raise Unfit(f"{spelled} must be one of {', '.join(flag.choices)} (got {_shown(value)}){meant}")


def _translated(options: Options, flags: FlagSet) -> Options:
    """The options with --mmap and --mlock as --load-mode, which is what newer engines have instead, and back."""
    given = {spelling(name): (name, value) for name, value in options}
    old = {name: given[name] for name in LOADING if name in given}
    newer = flags.has("--load-mode") and not (flags.has("--mmap") or flags.has("--no-mmap"))
    if newer and old and "load-mode" not in given:
        told = {name: _truth(value, f"--{name}") for name, (_, value) in old.items() if _is_truth(value)}
        if len(told) == len(old):
            mode = _load_mode(told)
            rest = [pair for pair in options if pair not in old.values()]
            return tuple(sorted([*rest, *([("load_mode", mode)] if mode else [])]))
    if flags.known and not flags.has("--load-mode") and "load-mode" in given and given["load-mode"][1] in LOAD_MODES:
        rest = [pair for pair in options if pair != given["load-mode"]]
        return tuple(sorted([*rest, *((name, True) for name in LOAD_MODES[str(given["load-mode"][1])])]))
    return options


LOADING = ("mmap", "no-mmap", "mlock", "direct-io", "no-direct-io")
LOAD_MODES: Mapping[str, tuple[str, ...]] = {
    "auto": (),
    "mmap": (),
    "none": ("no_mmap",),
    "mlock": ("mlock", "no_mmap"),
    "mmap+mlock": ("mlock",),
    "dio": ("direct_io",),
}


def _load_mode(told: Mapping[str, bool]) -> str:
    if told.get("direct-io"):
        return "dio"
    mapped = told.get("mmap", True) and not told.get("no-mmap", False)
    if told.get("mlock"):
        return "mmap+mlock" if mapped else "mlock"
    return ("mmap" if told.get("mmap") else "") if mapped else "none"


def _is_truth(value: Option) -> bool:
    return isinstance(value, bool) or (isinstance(value, str) and value.lower() in (*TRUE, *FALSE))


def _shown(value: Any) -> str:
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else repr(value)


def _number(text: str) -> bool:
    try:
        return float(text) == float(text)
    except ValueError:
        return False


def _whole(text: str) -> bool:
    return text.removeprefix("-").isdecimal()
