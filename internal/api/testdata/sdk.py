"""Drives the control-plane half of the official Python SDK against the server
of sdk_test.go. Ends with an assertion's message when it surprises."""
import asyncio

from e2b import (
    AsyncSandbox,
    AuthenticationException,
    Sandbox,
    SandboxException,
    SandboxNotFoundException,
    SandboxQuery,
    SandboxState,
    Template,
)


def raises(kind, call, text=""):
    try:
        call()
    except kind as e:
        assert text in str(e), f"{e!r} lacks {text!r}"
        return
    raise AssertionError(f"{kind.__name__} was not raised")


sbx = Sandbox.create(metadata={"user": "a b&c=ü", "run": "2"}, envs={"A": "b"}, timeout=60)
Sandbox.create("code-interpreter-v1", metadata={"run": "2"})

pages, got = 0, []
listing = Sandbox.list(query=SandboxQuery(metadata={"run": "2"}), limit=1)
while listing.has_next:
    got += listing.next_items()
    pages += 1
assert (len(got), pages) == (2, 2), (got, pages)
one = Sandbox.list(query=SandboxQuery(metadata={"user": "a b&c=ü"}, state=[SandboxState.RUNNING])).next_items()
assert [s.sandbox_id for s in one] == [sbx.sandbox_id], one
assert one[0].metadata == {"user": "a b&c=ü", "run": "2"}

info = sbx.get_info()
assert info.state == SandboxState.RUNNING and info.name == "base", info
assert (info.end_at - info.started_at).total_seconds() == 60
later = Sandbox.list(query=SandboxQuery(metadata={"run": "2"}, started_after=info.started_at), order="asc").next_items()
assert later[0].sandbox_id == sbx.sandbox_id and len(later) == 2, later
sbx.set_timeout(120)
assert (sbx.get_info().end_at - info.started_at).total_seconds() == 120
assert len(sbx.get_metrics()) == 2

assert sbx.pause() is not False
assert sbx.get_info().state == SandboxState.PAUSED
again = Sandbox.connect(sbx.sandbox_id)
assert again.sandbox_id == sbx.sandbox_id
assert again.get_info().state == SandboxState.RUNNING

assert sbx.kill() is True
assert sbx.kill() is False
raises(SandboxNotFoundException, lambda: Sandbox.connect(sbx.sandbox_id))
raises(SandboxNotFoundException, lambda: again.get_info())
raises(SandboxNotFoundException, lambda: again.set_timeout(1))
raises(SandboxNotFoundException, lambda: again.pause())
raises(AuthenticationException, lambda: Sandbox.create(api_key="e2b_00"))
raises(SandboxException, lambda: Sandbox.create("nope"), "404: template 'nope' not found")
raises(SandboxException, lambda: Sandbox.create(metadata={"a": "x" * 20_000}), "400: metadata.a must be at most")
assert Template.exists("base") and not Template.exists("nope")

first = Sandbox.create(idempotency_key="once-1") if "idempotency_key" in Sandbox.create.__doc__ else None
if first:
    assert Sandbox.create(idempotency_key="once-1").sandbox_id == first.sandbox_id


async def concurrently():
    made = await asyncio.gather(*(AsyncSandbox.create(metadata={"run": "3"}) for _ in range(5)))
    assert len({s.sandbox_id for s in made}) == 5
    assert all(await asyncio.gather(*(s.kill() for s in made)))


asyncio.run(concurrently())
print("ok")
