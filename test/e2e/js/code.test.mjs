// The code interpreter with the official JavaScript SDK.
import assert from 'node:assert/strict'
import { after, before, test } from 'node:test'
import { Sandbox } from '@e2b/code-interpreter'
import { TimeoutError } from 'e2b'

let sbx
before(async () => { sbx = await Sandbox.create({ timeoutMs: 300_000, envs: { GLOBAL_VAR: 'g' } }) })
after(async () => { await sbx?.kill() })

test('a value, and the state it leaves', async () => {
  await sbx.runCode('x = 40')
  const r = await sbx.runCode('x + 2')
  assert.equal(r.text, '42')
  assert.equal(r.error, undefined)
  assert.ok(r.executionCount >= 2)
})

test('stdout and stderr stream', async () => {
  const out = []
  const err = []
  const r = await sbx.runCode('import sys, time\nprint("first", flush=True)\ntime.sleep(2)\nprint("second")\nprint("oops", file=sys.stderr)', {
    onStdout: (m) => { out.push(m.line) }, onStderr: (m) => { err.push(m.line) },
  })
  assert.equal(r.logs.stdout.join(''), 'first\nsecond\n')
  assert.equal(r.logs.stderr.join(''), 'oops\n')
  assert.ok(out.length >= 2)
  assert.equal(err.join(''), 'oops\n')
})

test('an error has name, value and traceback', async () => {
  const r = await sbx.runCode('def f():\n    return 1 / 0\nf()')
  assert.equal(r.error.name, 'ZeroDivisionError')
  assert.equal(r.error.value, 'division by zero')
  assert.match(r.error.traceback, /in f/)
})

test('a plot is a PNG and a chart', async () => {
  const r = await sbx.runCode('import matplotlib.pyplot as plt\nplt.plot([1, 2, 3], [4, 5, 6], label="line")\nplt.title("T")\nplt.xlabel("x (m)")\nplt.show()')
  const png = Buffer.from(r.results[0].png, 'base64')
  assert.deepEqual([...png.subarray(0, 4)], [0x89, 0x50, 0x4e, 0x47])
  assert.equal(r.results[0].chart.type, 'line')
  assert.equal(r.results[0].chart.title, 'T')
  assert.equal(r.results[0].chart.x_unit, 'm')
  assert.deepEqual(r.results[0].chart.elements[0].points, [[1, 4], [2, 5], [3, 6]])
})

test('tables, HTML and JSON', async () => {
  const table = await sbx.runCode('import pandas as pd\npd.DataFrame({"a": [1, 2], "b": ["x", "y"]})')
  assert.match(table.results[0].html, /<table/)
  assert.deepEqual(table.results[0].data, { a: [1, 2], b: ['x', 'y'] })
  assert.equal(table.results[0].isMainResult, true)
  const json = await sbx.runCode('{"k": [1, 2.5, None]}')
  assert.deepEqual(json.results[0].json, { k: [1, 2.5, null] })
  const shown = await sbx.runCode('from IPython.display import display, HTML, Markdown\ndisplay(HTML("<b>hi</b>"))\ndisplay(Markdown("*md*"))')
  assert.deepEqual(shown.results.map((r) => r.html ?? r.markdown), ['<b>hi</b>', '*md*'])
  assert.equal(shown.results[0].isMainResult, false)
})

test('environment: of the sandbox, of one call', async () => {
  const r = await sbx.runCode('import os\nprint(os.environ.get("GLOBAL_VAR"), os.environ.get("CALL_VAR"))', { envs: { CALL_VAR: 'c' } })
  assert.equal(r.logs.stdout.join(''), 'g c\n')
  const after = await sbx.runCode('import os\nprint(os.environ.get("GLOBAL_VAR"), os.environ.get("CALL_VAR"))')
  assert.equal(after.logs.stdout.join(''), 'g None\n')
})

test('contexts are apart', async () => {
  const ctx = await sbx.createCodeContext({ cwd: '/tmp' })
  await sbx.runCode('x = "mine"', { context: ctx })
  assert.equal((await sbx.runCode('import os\nprint(x, os.getcwd())', { context: ctx })).logs.stdout.join(''), 'mine /tmp\n')
  assert.equal((await sbx.runCode('x')).text, '40')
  assert.ok((await sbx.listCodeContexts()).some((c) => c.id === ctx.id))
  await sbx.restartCodeContext(ctx)
  assert.equal((await sbx.runCode('x', { context: ctx })).error.name, 'NameError')
  await sbx.removeCodeContext(ctx)
  await assert.rejects(sbx.runCode('1', { context: ctx }))
})

test('a call over its time is interrupted, the kernel stays usable', async () => {
  await assert.rejects(sbx.runCode('import time\nkeep = 1\nwhile True: time.sleep(0.05)', { timeoutMs: 5_000 }), TimeoutError)
  assert.equal((await sbx.runCode('keep', { timeoutMs: 60_000 })).text, '1')
})

test('bash runs in the sandbox too', async () => {
  const r = await sbx.runCode('!echo from the shell')
  assert.equal(r.logs.stdout.join('').trim(), 'from the shell')
})

test('two sandboxes of one checkpoint do not share randomness', async () => {
  const draw = 'import random, uuid, secrets, numpy as np\nprint(random.random(), uuid.uuid4(), secrets.token_hex(8), np.random.rand())'
  const [a, b] = await Promise.all([Sandbox.create(), Sandbox.create()])
  try {
    const [x, y] = await Promise.all([a.runCode(draw), b.runCode(draw)])
    const xs = x.logs.stdout.join('').trim().split(' ')
    const ys = y.logs.stdout.join('').trim().split(' ')
    assert.equal(xs.length, 4)
    for (let i = 0; i < 4; i++) assert.notEqual(xs[i], ys[i])
  } finally {
    await Promise.all([a.kill(), b.kill()])
  }
})

test('a Jupyter Server is there on first use, for who has the token', async () => {
  const to = (port) => ({ 'E2b-Sandbox-Id': sbx.sandboxId, 'E2b-Sandbox-Port': port })
  const stranger = await fetch(`${process.env.E2B_SANDBOX_URL}/api`, { headers: to('8888') })
  assert.equal(stranger.status, 401)
  const code = await fetch(`${process.env.E2B_SANDBOX_URL}/execute`, { method: 'POST', headers: to('49999'), body: '{"code":"1"}' })
  assert.equal(code.status, 401)
  const deadline = Date.now() + 60_000
  for (;;) {
    const r = await fetch(`${process.env.E2B_SANDBOX_URL}/api?token=${sbx.envdAccessToken}`, { headers: to('8888') })
    if (r.status === 200) { assert.ok((await r.json()).version); return }
    await r.text()
    assert.ok(Date.now() < deadline, `port 8888 answers ${r.status}`)
  }
})
