"""The manifest as a whole: its sections, and the keys that stand beside them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from reconciler.core.section import (
    Bandwidth,
    Family,
    Later,
    Name,
    Section,
    Share,
    Size,
    Text,
    Truth,
    default,
    share,
)
from reconciler.core.section import bandwidth as amount  # a field has its name
from reconciler.kinds.engine.spec import EngineSection
from reconciler.kinds.gateway.spec import GatewaySection, RouteSection
from reconciler.kinds.mcp.spec import McpSection
from reconciler.kinds.model.spec import HubSection, ModelSection
from reconciler.kinds.provider.spec import ProviderSection


def _not_a_truth(value: Any) -> Any:
    if isinstance(value, bool):  # True equals 1, which a Literal is content with
        raise ValueError("must be 1")
    return value


class Limits(Section):
    """Bounds for all that runs and is kept here."""

    memory: Literal["auto"] | Size = "auto"
    """Memory for all servers together: what is not asked for is unloaded to keep to it. `auto` leaves enough for
    everything else."""
    disk: Annotated[Share | Size, Later()] = default("80%", share)
    """How full the disk may become: a share of it, or the size of the data root."""
    downloads: Annotated[int, Field(ge=1, le=32, strict=True)] = 3
    """Downloads at the same time."""
    bandwidth: Literal["none"] | Bandwidth = "none"
    """How much all downloads together may take: `10MB/s`."""
    scrub: Literal["none"] | Bandwidth = default("20MB/s", amount)
    """How fast files are read again in the background, each once a week, to see that they are still what was verified.
    `none` leaves it out."""
    override: Truth = False
    """Whether these keys win over the same keys in another file."""


class Stack(Section):
    """The whole manifest: what this machine should run."""

    version: Annotated[Literal[1], BeforeValidator(_not_a_truth)]
    """The version of the manifest language."""
    name: Name = "stack"
    """What this stack is called, in messages."""
    include: tuple[Text, ...] = ()
    """Further files, or globs such as team/*.yaml, relative to this file. What they say is merged by name."""
    override: Truth = False
    """Whether all of this file wins over other files that say the same."""
    data_root: Text | None = None
    """Where everything is kept; relative to this file. Default: state, beside it."""
    on_failure: Literal["stay", "rollback"] = "stay"
    """What to do when a changed manifest does not become ready: keep trying, or go back to the one before."""
    engines: dict[Name, EngineSection] = {}
    """Programs that run models. `embedded` is always there."""
    models: dict[Name, ModelSection] = {}
    """Models to have and to serve."""
    hub: HubSection = HubSection()
    """The model hub that `hf:` sources are repositories of."""
    providers: dict[Name, ProviderSection] = {}
    """AI services elsewhere, whose models are asked for as provider/model."""
    routes: dict[Family, RouteSection] = {}
    """Further names that clients may ask for, with fallbacks or shares. With a `*` at its end a name stands for all
    that begin so and are nothing else."""
    mcp_servers: Annotated[dict[Name, McpSection], Later()] = {}
    """Servers of tools, offered together by the gateway."""
    gateway: GatewaySection = GatewaySection()
    """The one local API in front of all models."""
    limits: Limits = Limits()
    """What all of it together may take of this machine."""
    policy: Annotated[tuple[Text, ...], Later()] = ()
    """Files with rules that every plan must keep to."""
