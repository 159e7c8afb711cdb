// Drives the control-plane half of the official JavaScript SDK against the
// server of sdk_test.go. Exits with an assertion's message when it surprises.
const assert = require('node:assert')
const { Sandbox, SandboxNotFoundError, AuthenticationError, RateLimitError, Template } = require('e2b')

async function main() {
  const sbx = await Sandbox.create({ metadata: { user: 'a b&c=ü', run: '1' }, envs: { A: 'b' }, timeoutMs: 60_000 })
  assert.match(sbx.sandboxId, /^i[a-z0-9]{20}$/)
  await Sandbox.create('code-interpreter-v1', { metadata: { run: '1' } })

  const all = []
  const pages = Sandbox.list({ query: { metadata: { run: '1' } }, limit: 1 })
  let count = 0
  while (pages.hasNext) { all.push(...await pages.nextItems()); count++ }
  assert.equal(all.length, 2)
  assert.equal(count, 2, 'pages')
  const one = await Sandbox.list({ query: { metadata: { user: 'a b&c=ü' }, state: ['running'] } }).nextItems()
  assert.deepEqual(one.map(s => s.sandboxId), [sbx.sandboxId])
  assert.deepEqual(one[0].metadata, { user: 'a b&c=ü', run: '1' })

  const info = await sbx.getInfo()
  assert.equal(info.state, 'running')
  assert.equal(info.name, 'base')
  assert.equal(info.endAt - info.startedAt, 60_000)
  await sbx.setTimeout(120_000)
  assert.equal((await sbx.getInfo()).endAt - info.startedAt, 120_000)
  assert.equal((await sbx.getMetrics()).length, 2)
  await sbx.updateNetwork({ denyOut: ['1.1.1.1/32'] })
  assert.deepEqual((await sbx.getInfo()).network.denyOut, ['1.1.1.1/32'])

  assert.equal(await sbx.pause(), true)
  assert.equal(await sbx.pause(), false)
  assert.equal((await sbx.getInfo()).state, 'paused')
  const again = await Sandbox.connect(sbx.sandboxId)
  assert.equal(again.sandboxId, sbx.sandboxId)
  assert.equal((await again.getInfo()).state, 'running')

  assert.equal(await sbx.kill(), true)
  assert.equal(await sbx.kill(), false)
  await assert.rejects(Sandbox.connect(sbx.sandboxId), SandboxNotFoundError)
  await assert.rejects(Sandbox.getInfo(sbx.sandboxId), SandboxNotFoundError)
  await assert.rejects(Sandbox.setTimeout(sbx.sandboxId, 1000), SandboxNotFoundError)
  await assert.rejects(Sandbox.pause(sbx.sandboxId), SandboxNotFoundError)
  await assert.rejects(Sandbox.create({ apiKey: 'e2b_00' }), AuthenticationError)
  await assert.rejects(Sandbox.create('nope'), /404: template 'nope' not found/)
  await assert.rejects(Sandbox.create({ volumeMounts: { '/v': 'x' } }), /400: volumeMounts is not supported/)
  await assert.rejects(Sandbox.create({ metadata: { a: 'x'.repeat(20_000) } }), /400: metadata.a must be at most/)
  const [fork, refused] = await (await Sandbox.create()).fork({ count: 2 })
  assert.ok(fork instanceof Sandbox)
  assert.match(refused.message, /no room/)
  assert.equal(await Template.exists('base'), true)
  assert.equal(await Template.exists('nope'), false)
}
main().then(() => console.log('ok'), err => { console.error(err); process.exit(1) })
