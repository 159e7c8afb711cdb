// A sandbox with a history, with the official JavaScript SDK: it is asked for by a
// header, because the SDK passes those on. Steps and rollback, which it does not
// know, by their paths.
import assert from 'node:assert/strict'
import { after, before, test } from 'node:test'
import { Sandbox } from '@e2b/code-interpreter'

const api = process.env.E2B_API_URL
const key = { 'X-API-Key': process.env.E2B_API_KEY, 'Content-Type': 'application/json' }
const sh = async (line) => (await sbx.commands.run(line)).stdout.trim()
const call = async (method, path, body) => {
  const r = await fetch(`${api}/v2/sandboxes/${sbx.sandboxId}/${path}`, { method, headers: key, body: body && JSON.stringify(body) })
  assert.equal(r.status, 200, await r.clone().text())
  return r.json()
}
const history = () => call('GET', 'history')
const back = (step) => call('POST', 'rollback', { step })
let sbx

before(async () => { sbx = await Sandbox.create({ timeoutMs: 300_000, metadata: { of: 'history' }, apiHeaders: { 'X-Hearth-History': 'on' } }) })
after(async () => { await sbx?.kill() })

test('every command and cell is a step to which one can go back', async () => {
  assert.deepEqual((await sbx.getInfo()).metadata, { of: 'history' })
  await sh('echo one > note')
  await sbx.runCode('x = 41')
  assert.equal(await sh('echo two > note; echo $((6*7))'), '42')
  await assert.rejects(sbx.commands.run('echo three > note; exit 3'), /exit status 3/)
  assert.equal((await sbx.runCode('x += 1; x')).text, '42')

  const h = await history()
  assert.deepEqual(h.steps.map((s) => [s.step, s.parent ?? 0, s.label]), [
    [1, 0, 'echo one > note'], [2, 1, 'cell x = 41'], [3, 2, 'echo two > note; echo $((6*7))'], [4, 3, 'echo three > note; exit 3'], [5, 4, 'cell x += 1; x'],
  ])
  assert.equal(h.head, 5)
  assert.equal(h.maxBytes, 2 ** 30)
  assert.ok(h.steps.every((s) => s.snapshotID && !s.error && s.bytes > 0), JSON.stringify(h))
  assert.ok(h.bytes > 0 && h.bytes <= h.maxBytes, `${h.bytes}`)

  await back(2)
  assert.equal(await sbx.files.read('note'), 'one\n')
  assert.equal((await sbx.runCode('x')).text, '41') // memory as it was, too
  assert.deepEqual((await history()).steps.slice(-1).map((s) => [s.step, s.parent]), [[6, 2]])

  await back(3) // what was left behind can be returned to
  assert.equal(await sbx.files.read('note'), 'two\n')
})

test('two snapshots differ by files that were added, changed and removed', async () => {
  const diff = async (from, to, query = '') => {
    const r = await fetch(`${api}/v2/snapshots/${encodeURIComponent(to)}/diff?from=${encodeURIComponent(from)}${query}`, { headers: key })
    assert.equal(r.status, 200, await r.clone().text())
    return r.json()
  }
  const home = (d) => Object.fromEntries(d.changes.filter((c) => c.path.startsWith('/home/user/')).map((c) => [c.path.slice(11), [c.change, c.kind, c.sizeBefore, c.size]]))
  await sh('mkdir diff; cd diff; echo stays > stays; echo goes > goes; echo grows > grows; ln -s stays link')
  const before = await sbx.createSnapshot()
  await sh('cd diff; rm goes; echo more >> grows; head -c 5000 /dev/zero > fresh; ln -sfn fresh link')
  const after = await sbx.createSnapshot()
  const d = await diff(before.snapshotId, after.snapshotId)
  assert.deepEqual(home(d), {
    'diff/fresh': ['added', 'file', 0, 5000], 'diff/goes': ['removed', 'file', 5, 0], 'diff/grows': ['changed', 'file', 6, 11], 'diff/link': ['changed', 'symlink', 0, 0],
  })
  assert.ok(d.added.count >= 1 && d.added.bytes >= 5000 && d.removed.count >= 1 && !d.truncated, JSON.stringify(d))
  assert.ok(d.changes.every((c) => !/^\/(proc|sys|dev)\//.test(c.path)), JSON.stringify(d))
  const back = await diff(after.snapshotId, before.snapshotId, '&limit=1')
  assert.deepEqual([back.added.count, back.removed.count, back.changed.count, back.changes.length, back.truncated], [d.removed.count, d.added.count, d.changed.count, 1, true])
  assert.deepEqual((await diff(after.snapshotId, after.snapshotId)).changes, [])

  const steps = (await history()).steps // a step's files are compared like any other's
  assert.deepEqual(home(await diff(steps.at(-2).snapshotID, steps.at(-1).snapshotID)), home(d))
  assert.equal(await sh('cat diff/grows'), 'grows\nmore') // the sandbox has not noticed
})

test('a terminal is a step when it ends, and a command that nobody waits for when it does', async () => {
  const before = (await history()).steps.length
  const pty = await sbx.pty.create({ cols: 80, rows: 24, onData: () => {} })
  const waits = await sbx.commands.run('until [ -f go ]; do sleep 0.1; done; echo went > went', { background: true })
  assert.equal((await history()).steps.length, before) // neither has ended
  await sbx.pty.sendInput(pty.pid, new TextEncoder().encode('exit\n'))
  await pty.wait()
  await sbx.files.write('go', '')
  await waits.wait()
  const steps = (await history()).steps.slice(before)
  assert.deepEqual(steps.map((s) => s.label.split(' ')[0]), ['terminal', 'until'])
  await back(steps[0].step)
  await sbx.files.write('go', '')
  await sh('for i in $(seq 500); do [ -f went ] && exit; sleep 0.1; done; exit 1') // it waits in there, and goes on
})

test('commands that end at once are in one step or a few, and none waits for long', async () => {
  const before = (await history()).steps.length
  const outs = await Promise.all([...Array(8).keys()].map((i) => sh(`echo ${i} > many-${i}; echo ${i}`)))
  assert.deepEqual(outs, ['0', '1', '2', '3', '4', '5', '6', '7'])
  const h = await history()
  const fresh = h.steps.slice(before)
  assert.ok(fresh.length >= 1 && fresh.length <= 8, JSON.stringify(fresh))
  assert.ok(fresh.every((s) => s.snapshotID), JSON.stringify(fresh))
  await back(fresh.at(-1).step)
  assert.equal(await sh('ls many-* | wc -l'), '8')
})

test('a history outlives a pause', async () => {
  const before = (await history()).steps.length
  await sbx.pause()
  sbx = await Sandbox.connect(sbx.sandboxId, { timeoutMs: 300_000 })
  await sh('echo four > note')
  const h = await history()
  assert.equal(h.steps.length, before + 1)
  await back(1)
  assert.equal(await sbx.files.read('note'), 'one\n')
  await back(h.steps.at(-1).step)
  assert.equal(await sbx.files.read('note'), 'four\n')
})
