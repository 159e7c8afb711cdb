"""Tries connections from inside a sandbox.

Reads one target a line, "tcp|udp HOST PORT" (HOST in any spelling that programs
take), and prints for each "TARGET -> OUTCOME". An outcome is
"connected", "answered", "silent" (nothing came back in time) or an errno's name.
"""
import errno
import socket
import sys
import threading

PATIENCE = {"tcp": 60.0, "udp": 5.0}


def attempt(kind, host, port):
    try:
        infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM,
                                   flags=socket.AI_NUMERICHOST)
    except socket.gaierror as e:
        return "no such spelling: %s" % e
    family, type_, proto, _, addr = infos[0]
    try:
        with socket.socket(family, type_, proto) as s:
            s.settimeout(PATIENCE[kind])
            s.connect(addr)
            if kind == "tcp":
                return "connected"
            s.send(b"ping")
            s.recv(100)
            return "answered"
    except TimeoutError:
        return "silent"
    except OSError as e:
        return errno.errorcode.get(e.errno, str(e))


def probe(line, out, i):
    out[i] = "%s -> %s" % (line, attempt(*line.split()))


lines = [l.strip() for l in sys.stdin if l.strip()]
out = [None] * len(lines)
threads = [threading.Thread(target=probe, args=(l, out, i)) for i, l in enumerate(lines)]
for t in threads:
    t.start()
for t in threads:
    t.join()
print("\n".join(out))
