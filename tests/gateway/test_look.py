"""What is concluded from a gateway that does not answer."""

from __future__ import annotations

from pathlib import Path

from reconciler.app import tools_for
from reconciler.core.ids import Ref
from reconciler.core.state import Found
from reconciler.host.effects import Effects
from reconciler.host.layout import Layout
from reconciler.host.process import workload_environment
from reconciler.kinds.registry import KINDS
from reconciler.store.ledger import Ledger
from tests.support.processes import kill9, wait_until

GATEWAY = Ref("gateway", "main")


def test_one_that_lives_and_does_not_answer_may_lead_to_any_server(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    ledger = Ledger.write(layout.ledger, Effects())
    try:
        tools = tools_for(layout, tmp_path, Effects(), ledger, KINDS)
        ledger.intend_process("s1", Ref("server", "chat"), "d", "127.0.0.1", 1, {}, tmp_path / "s.log")
        ledger.intend_process("g1", GATEWAY, "d", "127.0.0.1", 2, {}, tmp_path / "g.log")
        identity = tools.processes.spawn(["sleep", "60"], workload_environment({}), tmp_path / "g.log", tmp_path)
        ledger.record_spawned("g1", identity)

        def routed() -> set[str]:
            seen = KINDS["gateway"].observe([GATEWAY], {}, tools)[GATEWAY]
            assert isinstance(seen, Found)
            return set(seen.state.routed)

        assert "s1" in routed()
        kill9(identity.pid)
        wait_until(lambda: tools.processes.exit_code(identity) is not None)
        assert not routed()
    finally:
        ledger.close()
