// Pauses, snapshots and forks with the official JavaScript SDK; rollback, which it
// does not know, by its path.
import assert from 'node:assert/strict'
import { after, before, test } from 'node:test'
import { Sandbox } from 'e2b'

const api = process.env.E2B_API_URL
const key = { 'X-API-Key': process.env.E2B_API_KEY, 'Content-Type': 'application/json' }
const sh = async (s, line) => (await s.commands.run(line)).stdout.trim()
const all = []
const made = (s) => { all.push(s); return s }
let sbx
// A sandbox's clock is right, however long the question and the answer take.
const onTime = async (s) => {
  const asked = Date.now()
  const clock = Number(await sh(s, 'date +%s%3N'))
  assert.ok(clock > asked - 1000 && clock < Date.now() + 1000, `asked at ${asked} it said ${clock}`)
}

before(async () => { sbx = made(await Sandbox.create('base', { timeoutMs: 300_000, envs: { GREETING: 'hello' }, metadata: { of: 'travel' } })) })
after(async () => { await Promise.all(all.map((s) => s.kill().catch(() => {}))) })

test('a snapshot is a moment: the sandbox goes on, what is made from it begins there', async () => {
  await sbx.files.write('note', 'one')
  const slow = sbx.commands.run('for i in 1 2 3 4 5 6 7 8; do echo $i; sleep 0.2; done') // through the snapshot
  const snap = await sbx.createSnapshot()
  assert.match(snap.snapshotId, /^s[a-z0-9]{20}:default$/)
  assert.equal((await slow).stdout, '1\n2\n3\n4\n5\n6\n7\n8\n')
  await sbx.files.write('note', 'two')
  const born = made(await Sandbox.create(snap.snapshotId, { timeoutMs: 300_000 }))
  assert.equal(await born.files.read('note'), 'one')
  assert.equal(await sbx.files.read('note'), 'two')
  assert.notEqual(await sh(born, 'hostname'), await sh(sbx, 'hostname'))

  const pages = Sandbox.listSnapshots({ sandboxId: sbx.sandboxId, limit: 1 })
  const seen = []
  while (pages.hasNext) seen.push(...(await pages.nextItems()).map((s) => s.snapshotId))
  assert.deepEqual(seen, [snap.snapshotId])
  assert.equal(await Sandbox.deleteSnapshot(snap.snapshotId), true)
  assert.equal(await Sandbox.deleteSnapshot(snap.snapshotId), false)
  await assert.rejects(Sandbox.create(snap.snapshotId), /not found/)
  assert.equal(await born.files.read('note'), 'one') // lives on
})

test('a name belongs to the snapshot that got it last', async () => {
  const name = `golden-${process.pid}:v1`
  await sbx.files.write('version', '1')
  const first = await sbx.createSnapshot({ name })
  assert.match(first.snapshotId, new RegExp(`^[a-z0-9_-]+/${name}$`))
  await sbx.files.write('version', '2')
  await sbx.createSnapshot({ name })
  assert.equal(await made(await Sandbox.create(name, { timeoutMs: 300_000 })).files.read('version'), '2')
  await assert.rejects(sbx.createSnapshot({ name: 'base' }), /template/)
  await assert.rejects(sbx.createSnapshot({ name: 'someone-else/x' }), /namespace/)
})

test('forks are sandboxes of their own', async () => {
  await sbx.files.write('note', 'before the fork')
  const forks = (await sbx.fork({ count: 3, timeoutMs: 300_000 })).map((f) => made(f.sandbox ?? f))
  assert.equal(new Set(forks.map((f) => f.sandboxId)).size, 3)
  const uuids = await Promise.all(forks.map((f) => sh(f, 'python3 -c "import uuid, secrets; print(uuid.uuid4(), secrets.token_hex())"')))
  assert.equal(new Set(uuids).size, 3)
  for (const f of forks) {
    assert.equal(await f.files.read('note'), 'before the fork')
    assert.deepEqual([await sh(f, 'echo $GREETING'), await sh(f, 'hostname')], ['hello', f.sandboxId])
    await onTime(f)
    const res = await fetch(`${api}/files?path=note`, {
      headers: { 'E2b-Sandbox-Id': f.sandboxId, 'E2b-Sandbox-Port': '49983', 'X-Access-Token': sbx.envdAccessToken ?? 'none' },
    })
    assert.equal(res.status, 401, "the original's token does not open a fork")
  }
  await forks[0].files.write('note', 'mine')
  assert.equal(await sbx.files.read('note'), 'before the fork')
})

test('rollback: the same sandbox, as it was', async () => {
  await sbx.files.write('note', 'good')
  const snap = await sbx.createSnapshot()
  await sh(sbx, 'rm -rf note .bashrc; echo broken > version')
  const back = (id) => fetch(`${api}/v2/sandboxes/${sbx.sandboxId}/rollback`, { method: 'POST', headers: key, body: JSON.stringify({ snapshotID: id }) })
  const res = await back(snap.snapshotId)
  assert.equal(res.status, 200, await res.clone().text())
  assert.equal((await res.json()).sandboxID, sbx.sandboxId)
  assert.equal(await sbx.files.read('note'), 'good') // with the same token
  assert.equal((await sbx.getInfo()).metadata.of, 'travel')
  const other = made(await Sandbox.create('base', { timeoutMs: 300_000 }))
  assert.equal((await back((await other.createSnapshot()).snapshotId)).status, 409, "another's snapshot")
  assert.equal(await sbx.files.read('note'), 'good')
})

test('traffic wakes a paused sandbox once, whoever comes', async () => {
  const s = made(await Sandbox.create('base', { timeoutMs: 300_000, lifecycle: { onTimeout: 'pause', autoResume: true } }))
  await sh(s, '(python3 -m http.server 8200 -d /etc > /dev/null 2>&1 &)')
  const ask = () => fetch(`${api}/hostname`, { headers: { 'E2b-Sandbox-Id': s.sandboxId, 'E2b-Sandbox-Port': '8200' } })
  const deadline = Date.now() + 60_000
  while ((await ask()).status !== 200) assert.ok(Date.now() < deadline, 'the server does not serve')
  await s.pause()
  const answers = await Promise.all([1, 2, 3, 4, 5].map(async () => { const r = await ask(); return [r.status, (await r.text()).trim()] }))
  assert.deepEqual(answers, Array(5).fill([200, s.sandboxId]))
  await s.pause()
  assert.equal(await sh(s, 'echo awake'), 'awake')
  const asleep = made(await Sandbox.create('base', { timeoutMs: 300_000 }))
  await asleep.pause()
  assert.equal((await fetch(`${api}/`, { headers: { 'E2b-Sandbox-Id': asleep.sandboxId, 'E2b-Sandbox-Port': '8200' } })).status, 502)
})

test('nothing is lost over ten pauses', async () => {
  const s = made(await Sandbox.create('base', { timeoutMs: 300_000 }))
  await sh(s, 'python3 -c "import time\nwhile True: time.sleep(1)" > /dev/null 2>&1 & echo $! > /tmp/pid')
  for (let i = 1; i <= 10; i++) {
    await s.files.write(`f${i}`, `written ${i}`)
    await s.pause()
    await s.connect()
    for (let k = 1; k <= i; k++) assert.equal(await s.files.read(`f${k}`), `written ${k}`)
    assert.equal(await sh(s, 'kill -0 $(cat /tmp/pid) && echo alive'), 'alive')
    await onTime(s)
  }
})

test('two who resume at once get one machine', async () => {
  const s = made(await Sandbox.create('base', { timeoutMs: 300_000 }))
  await s.pause()
  const both = await Promise.all([1, 2, 3].map(() => Sandbox.connect(s.sandboxId, { timeoutMs: 300_000 })))
  const boots = await Promise.all(both.map((b) => sh(b, 'echo $PPID > /dev/null; cat /proc/sys/kernel/random/boot_id; hostname')))
  assert.equal(new Set(boots).size, 1)
})

test('a pause without memory keeps files and boots afresh', async () => {
  const s = made(await Sandbox.create('base', { timeoutMs: 300_000, envs: { GREETING: 'hello' } }))
  for (const i of [1, 2, 3]) {
    await s.files.write(`kept-${i}`, 'x'.repeat(i * 100_000))
    await sh(s, '(sleep 1000 > /dev/null 2>&1 &); rm -f .profile')
    const boot = await sh(s, 'cat /proc/sys/kernel/random/boot_id')
    const res = await fetch(`${api}/sandboxes/${s.sandboxId}/pause`, { method: 'POST', headers: key, body: '{"memory":false}' })
    assert.equal(res.status, 204, await res.text())
    const again = await s.connect()
    assert.equal(again.sandboxId, s.sandboxId)
    for (let k = 1; k <= i; k++) assert.equal((await s.files.read(`kept-${k}`)).length, k * 100_000)
    assert.notEqual(await sh(s, 'cat /proc/sys/kernel/random/boot_id'), boot)
    assert.equal(await sh(s, 'pgrep -c sleep || true; ls .profile 2>/dev/null; echo $GREETING'), '0\nhello')
  }
})
