// Life of a sandbox with the official JavaScript SDK: create, find, extend, end.
import assert from 'node:assert/strict'
import { after, before, test } from 'node:test'
import { Sandbox, SandboxNotFoundError, AuthenticationError, TimeoutError } from 'e2b'

const run = `js-${process.pid}-${Date.now()}`
let sbx

before(async () => {
  sbx = await Sandbox.create('base', { timeoutMs: 120_000, metadata: { run, note: 'a b&c=d/ü' }, envs: { GREETING: 'hello' } })
})
after(async () => { await sbx?.kill() })

test('ids and tokens have the form that E2B clients know', async () => {
  assert.match(sbx.sandboxId, /^i[a-z0-9]{20}$/)
  assert.equal(await sbx.isRunning(), true)
})

test('getInfo tells what was asked for', async () => {
  const info = await sbx.getInfo()
  assert.equal(info.sandboxId, sbx.sandboxId)
  assert.equal(info.state, 'running')
  assert.equal(info.name, 'base')
  assert.deepEqual(info.metadata, { run, note: 'a b&c=d/ü' })
  assert.ok(info.cpuCount >= 1 && info.memoryMB >= 128)
  const left = info.endAt - Date.now()
  assert.ok(left > 60_000 && left <= 121_000, `ends in ${left} ms`)
})

test('list finds it by metadata, in pages', async () => {
  const more = await Sandbox.create('base', { timeoutMs: 60_000, metadata: { run } })
  try {
    const seen = []
    const pages = Sandbox.list({ query: { metadata: { run } }, limit: 1 })
    while (pages.hasNext) {
      const page = await pages.nextItems()
      assert.ok(page.length <= 1)
      seen.push(...page.map((s) => s.sandboxId))
    }
    assert.deepEqual(seen, [more.sandboxId, sbx.sandboxId], 'newest first')
    const exact = await Sandbox.list({ query: { metadata: { run, note: 'a b&c=d/ü' } } }).nextItems()
    assert.deepEqual(exact.map((s) => s.sandboxId), [sbx.sandboxId])
    const none = await Sandbox.list({ query: { metadata: { run: 'no such run' } } }).nextItems()
    assert.deepEqual(none, [])
  } finally {
    await more.kill()
  }
})

test('connect gives the same sandbox, and only extends its life', async () => {
  const again = await Sandbox.connect(sbx.sandboxId, { timeoutMs: 1_000 })
  assert.equal(again.sandboxId, sbx.sandboxId)
  assert.equal((await again.commands.run('echo $GREETING')).stdout, 'hello\n')
  assert.ok((await again.getInfo()).endAt - Date.now() > 30_000)
})

test('setTimeout moves the end both ways', async () => {
  await sbx.setTimeout(300_000)
  assert.ok((await sbx.getInfo()).endAt - Date.now() > 250_000)
  await sbx.setTimeout(120_000)
  assert.ok((await sbx.getInfo()).endAt - Date.now() < 121_000)
})

test('a sandbox ends when its time is up', async () => {
  const short = await Sandbox.create('base', { timeoutMs: 60_000 })
  await short.setTimeout(1_000)
  const deadline = Date.now() + 60_000
  while (await short.isRunning()) assert.ok(Date.now() < deadline, 'still running')
  await assert.rejects(short.getInfo(), SandboxNotFoundError)
})

test('kill ends it, cuts its streams, and says so the second time', async () => {
  const victim = await Sandbox.create('base')
  const cmd = await victim.commands.run('sleep 600', { background: true, timeoutMs: 0 })
  const ended = assert.rejects(cmd.wait(), TimeoutError)
  assert.equal(await victim.kill(), true)
  await ended
  assert.equal(await victim.kill(), false)
  assert.equal(await victim.isRunning(), false)
  await assert.rejects(Sandbox.connect(victim.sandboxId), SandboxNotFoundError)
  await assert.rejects(victim.commands.run('true'), (e) => e instanceof TimeoutError || e instanceof SandboxNotFoundError)
})

test('pause keeps memory and processes, connect resumes', async () => {
  const p = await Sandbox.create('base', { timeoutMs: 120_000 })
  try {
    await p.files.write('/home/user/note', 'kept')
    const bg = await p.commands.run('n=0; while true; do n=$((n+1)); echo $n > /tmp/count; sleep 0.05; done', { background: true, timeoutMs: 0 })
    await p.pause()
    assert.equal((await p.getInfo()).state, 'paused')
    assert.equal(await p.isRunning(), false)
    const back = await Sandbox.connect(p.sandboxId, { timeoutMs: 120_000 })
    assert.equal(await back.files.read('/home/user/note'), 'kept')
    assert.ok((await back.commands.list()).some((c) => c.pid === bg.pid), 'the process is still there')
    const count = async () => Number(await back.files.read('/tmp/count').catch(() => '0'))
    const first = await count()
    const deadline = Date.now() + 60_000
    while ((await count()) <= first) assert.ok(Date.now() < deadline, 'the process stands still')
  } finally {
    await p.kill()
  }
})

test('wrong keys and wrong templates are refused', async () => {
  await assert.rejects(Sandbox.create('base', { apiKey: 'e2b_' + '0'.repeat(40) }), AuthenticationError)
  await assert.rejects(Sandbox.create('no-such-template'), /no-such-template/)
})

test('another sandbox\'s token does not open this one', async () => {
  const other = await Sandbox.create('base')
  try {
    const url = `${process.env.E2B_SANDBOX_URL}/files?path=/etc/hostname`
    const to = { 'E2b-Sandbox-Id': sbx.sandboxId, 'E2b-Sandbox-Port': '49983' }
    const wrong = await fetch(url, { headers: { ...to, 'X-Access-Token': other.envdAccessToken ?? 'x' } })
    assert.equal(wrong.status, 401)
    const none = await fetch(`${process.env.E2B_SANDBOX_URL}/envs`, { headers: to })
    assert.equal(none.status, 401)
    const init = await fetch(`${process.env.E2B_SANDBOX_URL}/init`, { method: 'POST', headers: to, body: '{}' })
    assert.equal(init.status, 404)
  } finally {
    await other.kill()
  }
})

test('signed file URLs work without headers, altered ones do not', async () => {
  await sbx.files.write('/home/user/signed.txt', 'by signature')
  const url = await sbx.downloadUrl('/home/user/signed.txt', { useSignatureExpiration: 60 })
  const got = await fetch(url)
  assert.equal(got.status, 200)
  assert.equal(await got.text(), 'by signature')
  const bad = await fetch(url.replace('signed.txt', 'other.txt'))
  assert.ok(bad.status >= 400, `altered URL answered ${bad.status}`)
})

test('a server in the sandbox is reachable on its port, a closed port says so', async () => {
  const headers = (port) => ({ 'E2b-Sandbox-Id': sbx.sandboxId, 'E2b-Sandbox-Port': String(port) })
  for (const [port, bind] of [[8123, '0.0.0.0'], [8124, '127.0.0.1']]) {
    await sbx.commands.run(`python3 -m http.server ${port} --bind ${bind} --directory /etc`, { background: true, timeoutMs: 0 })
    const deadline = Date.now() + 60_000
    for (;;) {
      const r = await fetch(`${process.env.E2B_SANDBOX_URL}/hostname`, { headers: headers(port) })
      if (r.status === 200) { assert.ok((await r.text()).length > 0); break }
      await r.text()
      assert.ok(Date.now() < deadline, `port ${port} on ${bind} answers ${r.status}`)
    }
  }
  const closed = await fetch(process.env.E2B_SANDBOX_URL, { headers: headers(9) })
  assert.equal(closed.status, 502)
  assert.match((await closed.json()).message, /port is not open/)
})

test('metrics come in bytes', async () => {
  const deadline = Date.now() + 60_000
  for (;;) {
    const m = await sbx.getMetrics()
    if (m.length > 0) { assert.ok(m[0].memTotal > m[0].memUsed && m[0].memUsed > 0); return }
    assert.ok(Date.now() < deadline, 'no sample')
  }
})
