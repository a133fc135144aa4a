"""What the manifest may say of an MCP server."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, model_validator

from reconciler.core.section import (
    Address,
    Duration,
    Entry,
    Header,
    Section,
    Text,
    Truth,
    Value,
    Variable,
    default,
    duration,
)

_OF_COMMAND = ("args", "env", "cwd", "sandbox")
Glob = Annotated[str, Field(pattern=r"^[!-~]{1,128}$")]


class Tools(Section):
    """Which tools are offered. A name or a glob such as `read_*`."""

    allow: tuple[Glob, ...] = ("*",)
    """Only these."""
    deny: tuple[Glob, ...] = ()
    """Not these, even if they are allowed."""


class Timeout(Section):
    """How long to wait."""

    start: Duration = default("30s", duration)
    """For the server to be ready."""
    call: Duration = default("60s", duration)
    """For a tool to answer."""


class McpSection(Entry):
    """A server of tools: a program that is started here (`command`), or an address (`url`)."""

    model_config = ConfigDict(json_schema_extra={"oneOf": [{"required": ["command"]}, {"required": ["url"]}]})

    command: Text | None = None
    """The program to start."""
    args: tuple[str, ...] = ()
    """Its arguments. Not for secrets: every process of the machine can read them."""
    env: dict[Variable, Value] = {}
    """Environment variables for it: text, or references to secrets."""
    cwd: Text | None = None
    """The folder that it runs in; a relative path counts from the folder of the manifest. Default: an empty one."""
    sandbox: Literal["none", "bubblewrap"] = "none"
    """What it is shut in by."""
    url: Address | None = None
    """The address of a server that runs already."""
    headers: dict[Header, Value] = {}
    """Headers to send to `url`: text, or references to secrets."""
    transport: Literal["stdio", "http", "sse"] | None = None
    """How to talk to it. Default: stdio with `command`, http with `url`."""
    tools: Tools = Tools()
    """Which of its tools are offered."""
    timeout: Timeout = Timeout()
    """How long to wait for it."""
    pin: Truth = True
    """Whether its tools are remembered as they are first seen, and changed ones kept back until they are accepted."""

    @model_validator(mode="after")
    def _one_way(self) -> McpSection:
        said = {"command", "url"} & self.model_fields_set
        if len(said) > 1:
            raise ValueError("it has both a `command` and a `url`")
        if self.command is None and self.url is None:
            raise ValueError("it has neither a `command` nor a `url`")
        ours, given = ("command", "url") if self.url is None else ("url", "command")
        unfit = {"headers"} if ours == "command" else set(_OF_COMMAND)
        if wrong := sorted(unfit & self.model_fields_set):
            raise ValueError(f"`{wrong[0]}` goes with `{given}`, not with `{ours}`")
        if self.transport is not None and (self.transport == "stdio") != (ours == "command"):
            raise ValueError(f"`transport: {self.transport}` does not go with `{ours}`")
        return self
