// What every driver must do for the official JavaScript SDK. Steered by
// HEARTH_TEST_DRIVER, HEARTH_TEST_ISOLATION (the words that it is told in) and HEARTH_TEST_TEMPLATE.
import assert from 'node:assert/strict'
import { after, before, test } from 'node:test'
import { Sandbox, SandboxNotFoundError } from 'e2b'

const { HEARTH_TEST_DRIVER: driver, HEARTH_TEST_ISOLATION: isolation, HEARTH_TEST_TEMPLATE: template } = process.env
const patient = { requestTimeoutMs: 120_000, timeoutMs: 600_000 }
const options = { ...patient, apiHeaders: { 'X-Hearth-Driver': driver } }
let sbx

before(async () => { sbx = await Sandbox.create(template, { ...options, envs: { GREETING: 'hello' } }) })
after(async () => { await sbx?.kill() })

test('it says what it runs on', async () => {
  const res = await fetch(`${process.env.E2B_API_URL}/sandboxes/${sbx.sandboxId}`, { headers: { 'X-API-Key': process.env.E2B_API_KEY } })
  const info = await res.json()
  assert.equal(info.driver, driver)
  assert.equal(info.isolation, isolation)
})

test('a driver that is not there is refused by name', async () => {
  await assert.rejects(Sandbox.create(template, { apiHeaders: { 'X-Hearth-Driver': 'magic' } }), /magic.*there is: .*gvisor/)
})

test('commands', async () => {
  const out = await sbx.commands.run('echo $GREETING; whoami; echo e >&2', { timeoutMs: 60_000 })
  assert.deepEqual([out.exitCode, out.stdout, out.stderr], [0, 'hello\nuser\n', 'e\n'])
  await assert.rejects(sbx.commands.run('exit 3', { timeoutMs: 60_000 }), (e) => e.exitCode === 3)
})

test('files', async () => {
  await sbx.files.write('d/f.txt', 'text ü')
  assert.equal(await sbx.files.read('d/f.txt'), 'text ü')
  const big = new Uint8Array(1 << 20).map((_, i) => i * 7)
  await sbx.files.write('d/big', big.buffer)
  assert.deepEqual(await sbx.files.read('d/big', { format: 'bytes' }), big)
  assert.deepEqual((await sbx.files.list('d')).map((e) => e.name).sort(), ['big', 'f.txt'])
})

test('pause keeps memory, files and the driver', async () => {
  const left = await sbx.commands.run('for i in $(seq 1000); do echo $i; sleep 0.2; done >/tmp/count', { background: true, timeoutMs: 0 })
  await sbx.files.write('kept', '1')
  await sbx.pause()
  const back = await Sandbox.connect(sbx.sandboxId, patient)
  assert.equal(await back.files.read('kept'), '1')
  assert.ok((await back.commands.list()).some((p) => p.pid === left.pid), 'the process did not survive')
  const res = await fetch(`${process.env.E2B_API_URL}/sandboxes/${sbx.sandboxId}`, { headers: { 'X-API-Key': process.env.E2B_API_KEY } })
  assert.equal((await res.json()).driver, driver)
  assert.equal(await back.commands.kill(left.pid), true)
})

test('a name, a fork, and a call that wakes', async () => {
  await sbx.files.write('note', 'named')
  const name = `core-${driver}-${process.pid}:v1`
  const snap = await sbx.createSnapshot({ name, requestTimeoutMs: 120_000 })
  assert.ok(snap.snapshotId.endsWith(`/${name}`), snap.snapshotId)
  await sbx.files.write('note', 'later')
  const made = [await Sandbox.create(name, { ...options, lifecycle: { onTimeout: 'pause', autoResume: true } })]
  try {
    made.push(...(await sbx.fork({ count: 1, timeoutMs: 600_000, requestTimeoutMs: 120_000 })).map((f) => f.sandbox ?? f))
    assert.deepEqual(await Promise.all(made.map((s) => s.files.read('note'))), ['named', 'later'])
    const [born] = made
    const count = await born.commands.run('for i in $(seq 5000); do echo $i; sleep 0.2; done', { background: true, timeoutMs: 0 })
    await born.pause()
    assert.equal((await born.getInfo()).state, 'paused')
    assert.equal((await born.commands.run('echo awake', { timeoutMs: 120_000 })).stdout, 'awake\n') // nobody connected
    assert.ok((await born.commands.list()).some((p) => p.pid === count.pid), 'the process did not survive')
    assert.equal((await born.getInfo()).state, 'running')
  } finally {
    await Promise.all(made.map((s) => s.kill()))
    assert.equal(await Sandbox.deleteSnapshot(snap.snapshotId), true)
  }
})

test('kill', async () => {
  assert.equal(await sbx.kill(), true)
  await assert.rejects(Sandbox.connect(sbx.sandboxId), SandboxNotFoundError)
})
