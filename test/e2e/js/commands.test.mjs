// Commands and terminals with the official JavaScript SDK.
import assert from 'node:assert/strict'
import { after, before, test } from 'node:test'
import { Sandbox, CommandExitError, TimeoutError } from 'e2b'

let sbx
before(async () => { sbx = await Sandbox.create('base', { envs: { SHARED: 'yes', SET: 'sandbox' } }) })
after(async () => { await sbx?.kill() })

test('output streams as it is written', async () => {
  const out = []
  const err = []
  const r = await sbx.commands.run('echo one; echo two >&2; sleep 2; echo three', { onStdout: (d) => { out.push(d) }, onStderr: (d) => { err.push(d) } })
  assert.deepEqual([r.exitCode, r.stdout, r.stderr], [0, 'one\nthree\n', 'two\n'])
  assert.ok(out.length >= 2, 'two writes, some time apart, arrive apart')
  assert.equal(out.join(''), r.stdout)
  assert.equal(err.join(''), r.stderr)
})

test('a failing command rejects with its exit code and output', async () => {
  await assert.rejects(sbx.commands.run('echo bad >&2; exit 7'), (e) => e instanceof CommandExitError && e.exitCode === 7 && e.stderr === 'bad\n')
  await assert.rejects(sbx.commands.run('no-such-binary-anywhere'), (e) => e instanceof CommandExitError && e.exitCode === 127)
})

test('environment, directory and user', async () => {
  const env = await sbx.commands.run('echo $SHARED $SET $OWN $HOME $USER', { envs: { SET: 'call', OWN: 'x' } })
  assert.equal(env.stdout, 'yes call x /home/user user\n')
  assert.equal((await sbx.commands.run('pwd')).stdout, '/home/user\n')
  assert.equal((await sbx.commands.run('pwd', { cwd: '/etc' })).stdout, '/etc\n')
  assert.equal((await sbx.commands.run('whoami', { user: 'root' })).stdout, 'root\n')
  assert.equal((await sbx.commands.run('sudo -n whoami')).stdout, 'root\n')
  await assert.rejects(sbx.commands.run('true', { cwd: '/no/such/dir' }), /does not exist/)
  await assert.rejects(sbx.commands.run('true', { user: 'nobody-such' }), /invalid username/)
})

test('background commands: list, connect, stdin, kill', async () => {
  const cmd = await sbx.commands.run('cat', { background: true, stdin: true, timeoutMs: 0 })
  assert.ok((await sbx.commands.list()).some((p) => p.pid === cmd.pid && p.args.includes('cat')))
  await cmd.disconnect()
  let seen = ''
  const again = await sbx.commands.connect(cmd.pid, { onStdout: (d) => { seen += d }, timeoutMs: 0 })
  await sbx.commands.sendStdin(cmd.pid, 'over here\n')
  await sbx.commands.closeStdin(cmd.pid)
  assert.equal((await again.wait()).exitCode, 0)
  assert.equal(seen, 'over here\n')
  const sleeper = await sbx.commands.run('sleep 1000', { background: true, timeoutMs: 0 })
  assert.equal(await sleeper.kill(), true)
  await assert.rejects(sleeper.wait(), CommandExitError)
  assert.equal(await sbx.commands.kill(sleeper.pid), false)
})

test('a command over its time is killed', async () => {
  await assert.rejects(sbx.commands.run('sleep 47.11', { timeoutMs: 500 }), TimeoutError)
  await sbx.commands.run('for i in $(seq 500); do pgrep -f "sleep 47[.]11" || exit 0; sleep 0.1; done; exit 1') // soon
})

test('a megabyte of output arrives whole', async () => {
  const r = await sbx.commands.run('head -c 1000000 /dev/zero | tr "\\0" x')
  assert.equal(r.stdout.length, 1_000_000)
})

test('terminal: create, input, resize, exit', async () => {
  let text = ''
  const dec = new TextDecoder()
  const enc = new TextEncoder()
  const saw = async (what) => {
    const deadline = Date.now() + 60_000
    while (!text.includes(what)) {
      assert.ok(Date.now() < deadline, `no ${what} in ${JSON.stringify(text)}`)
      await new Promise((r) => setImmediate(r))
    }
  }
  const pty = await sbx.pty.create({ cols: 80, rows: 24, onData: (d) => { text += dec.decode(d) }, timeoutMs: 0, envs: { IN_PTY: '1' } })
  await sbx.pty.sendInput(pty.pid, enc.encode('stty size; echo term=$TERM in=$IN_PTY\n'))
  await saw('24 80')
  await saw('term=xterm-256color in=1')
  await sbx.pty.resize(pty.pid, { cols: 100, rows: 30 })
  await sbx.pty.sendInput(pty.pid, enc.encode('stty size\n'))
  await saw('30 100')
  await sbx.pty.sendInput(pty.pid, enc.encode('exit\n'))
  assert.equal((await pty.wait()).exitCode, 0)
})
