"""KINDS: one line a kind."""

from __future__ import annotations

from reconciler.kinds.base import Kind
from reconciler.kinds.engine.io import EngineKind
from reconciler.kinds.gateway.io import GatewayKind
from reconciler.kinds.model.io import ModelKind
from reconciler.kinds.provider.io import ProviderKind
from reconciler.kinds.server.io import ServerKind

KINDS: dict[str, Kind] = {
    kind.name: kind for kind in (EngineKind(), ModelKind(), ServerKind(), ProviderKind(), GatewayKind())
}
