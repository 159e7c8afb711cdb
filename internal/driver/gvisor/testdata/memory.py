"""Uses memory in every way that sharing a checkpoint's pages could break.

A parent and three forked children fill memory with patterns, and then wait for
the file go.N of each generation N. Between two of them the machine that they run in
is checkpointed and restored. For each generation every process checks all of its
memory, byte by byte, changes some, and writes res.NAME.N: "ok", or what is wrong.
"""
import ctypes, hashlib, os, struct, sys, threading, time, traceback

DIR = sys.argv[1]
PAGE, MB = 4096, 1 << 20
SIZE = 2 * MB
PAGES = SIZE // PAGE
READ, WRITE, SHARED, PRIVATE, ANONYMOUS = 1, 2, 1, 2, 0x20
MREMAP_MAYMOVE, DONTNEED = 1, 4

libc = ctypes.CDLL(None, use_errno=True)
size, addr, num = ctypes.c_size_t, ctypes.c_void_p, ctypes.c_int
for name, result, args in (
    ("mmap", addr, (addr, size, num, num, num, ctypes.c_long)), ("mremap", addr, (addr, size, size, num)),
    ("madvise", num, (addr, size, num)), ("mprotect", num, (addr, size, num)), ("mlock", num, (addr, size)),
    ("munmap", num, (addr, size)), ("read", ctypes.c_ssize_t, (num, addr, size)), ("write", ctypes.c_ssize_t, (num, addr, size)),
):
    getattr(libc, name).restype, getattr(libc, name).argtypes = result, args


def call(name, *args):
    got = getattr(libc, name)(*args)
    if got in (-1, ctypes.c_void_p(-1).value):
        raise OSError(ctypes.get_errno(), name)
    return got


def new(n=SIZE, flags=PRIVATE | ANONYMOUS, fd=-1):
    return call("mmap", None, n, READ | WRITE, flags, fd, 0)


def pattern(seed, page):
    return hashlib.sha256(b"%d.%d" % (seed, page)).digest() * 128


def get(at, n=PAGE):
    return ctypes.string_at(at, n)


def put(at, data):
    ctypes.memmove(at, data, len(data))


def fill(at, seed, pages=PAGES):
    for i in range(pages):
        put(at + i * PAGE, pattern(seed, i))


def equal(got, want, what):
    if got != want:
        n = next((i for i, (a, b) in enumerate(zip(got, want)) if a != b), min(len(got), len(want)))
        raise Exception("%s: differs at byte %d: %r, not %r" % (what, n, got[n:n + 8], want[n:n + 8]))


def check(at, seed, what, but=(), pages=PAGES):
    for i in range(pages):
        if i not in but:
            equal(get(at + i * PAGE), pattern(seed, i), "%s, page %d" % (what, i))


def patched(data, at, new):
    return data[:at] + new + data[at + len(new):]


NAMES = "ABCDEFGHIJKL"
area = {k: new() for k in NAMES}
for seed, k in enumerate(NAMES):
    fill(area[k], seed)
together = new(flags=SHARED | ANONYMOUS)
fill(together, 50)
readonly = new()
fill(readonly, 70)
call("mprotect", readonly, SIZE, READ)
with open(DIR + "/mapped", "wb") as f:
    f.write(b"".join(pattern(60, i) for i in range(64)))
mapped = new(64 * PAGE, PRIVATE, os.open(DIR + "/mapped", os.O_RDWR))
put(mapped + 3 * PAGE, b"X" * PAGE)


def wait(generation):
    while not os.path.exists(DIR + "/go.%d" % generation):
        time.sleep(0.02)


def report(name, generation, error):
    path = DIR + "/res.%s.%d" % (name, generation)
    with open(path + ".tmp", "w") as f:
        f.write(error or "ok")
    os.rename(path + ".tmp", path)


def forever(name, step):
    generation = 1
    while True:
        wait(generation)
        try:
            step(generation)
            report(name, generation, None)
        except BaseException:
            report(name, generation, traceback.format_exc())
        generation += 1


def child(number):
    def step(generation):
        mine, others = number * 8, [n * 8 for n in (1, 2, 3) if n != number]
        for i in range(0, PAGES, 3):
            put(area["A"] + i * PAGE + mine, struct.pack("Q", 1000 * number + i + generation))
        for i in range(0, PAGES, 3):
            page = get(area["A"] + i * PAGE)
            equal(page[mine:mine + 8], struct.pack("Q", 1000 * number + i + generation), "own write")
            for o in others:
                equal(page[o:o + 8], pattern(0, i)[o:o + 8], "child %d looks at another's write" % number)
        for k in NAMES[1:]:
            check(area[k], NAMES.index(k), "child %d: %s" % (number, k))
        check(readonly, 70, "child's read-only memory")
    forever("child%d" % number, step)


def forks():
    """A child and a grandchild write to what the parent has, and the other way round."""
    pid = os.fork()
    if pid == 0:
        good = False
        try:
            for i in range(0, PAGES, 5):
                put(area["H"] + i * PAGE, b"child")
            grandchild = os.fork()
            if grandchild == 0:
                good = all(get(area["H"] + i * PAGE, 5) == b"child" for i in range(0, PAGES, 5))
                put(area["H"], b"grand")
                put(area["I"], b"grand")
                os._exit(0 if good else 1)
            good = os.waitpid(grandchild, 0)[1] == 0
            good = good and get(area["H"], 5) == b"child" and get(area["I"], 5) == pattern(8, 0)[:5]
            good = good and all(get(area["H"] + i * PAGE) == pattern(7, i) for i in range(PAGES) if i % 5)
        finally:
            os._exit(0 if good else 1)
    status = os.waitpid(pid, 0)[1]
    if status:
        raise Exception("child that writes ended with %d" % status)
    check(area["H"], 7, "H after a child wrote")
    check(area["I"], 8, "I after a grandchild wrote")
    r, w = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.read(r, 1)  # until the parent has written
        os._exit(0 if all(get(area["H"] + i * PAGE) == pattern(7, i) for i in range(PAGES)) else 1)
    for i in range(PAGES):
        put(area["H"] + i * PAGE, b"parent")
    os.write(w, b".")
    status = os.waitpid(pid, 0)[1]
    if status:
        raise Exception("a child sees what its parent wrote: %d" % status)


def threads():
    def write(j):
        for i in range(PAGES):
            put(area["G"] + i * PAGE + j * 64, b"%063d\n" % (i * 10 + j))
    all_of_them = [threading.Thread(target=write, args=(j,)) for j in range(6)]
    for t in all_of_them:
        t.start()
    for t in all_of_them:
        t.join()
    for i in range(PAGES):
        want = pattern(6, i)
        for j in range(6):
            want = patched(want, j * 64, b"%063d\n" % (i * 10 + j))
        equal(get(area["G"] + i * PAGE), want, "G, page %d, of six threads" % i)


def calls():
    """System calls that read and write the memory of a process."""
    fd = os.open("/proc/self/mem", os.O_RDWR)
    equal(os.pread(fd, PAGE, area["E"] + 9 * PAGE), pattern(4, 9), "/proc/self/mem")
    os.pwrite(fd, b"hello", area["E"] + 9 * PAGE + 10)
    equal(get(area["E"] + 9 * PAGE), patched(pattern(4, 9), 10, b"hello"), "write to /proc/self/mem")
    try:
        os.pwrite(fd, b"W", readonly + 20 * PAGE)
        equal(get(readonly + 20 * PAGE), patched(pattern(70, 20), 0, b"W"), "write to read-only memory")
        os.pwrite(fd, pattern(70, 20)[:1], readonly + 20 * PAGE)
    except OSError:
        pass  # kernels may refuse it
    os.close(fd)
    check(readonly, 70, "read-only memory")
    check(area["E"], 4, "E", (9,))
    r, w = os.pipe()
    os.write(w, b"p" * 3000)
    n = call("read", r, area["F"] + 50 * PAGE + 2000, 3000)
    both = pattern(5, 50) + pattern(5, 51)
    equal(get(area["F"] + 50 * PAGE, 2 * PAGE), patched(both, 2000, b"p" * n), "read across two pages")
    check(area["F"], 5, "F", (50, 51))
    call("write", w, area["F"] + 60 * PAGE, PAGE)
    equal(os.read(r, PAGE), pattern(5, 60), "write from shared memory")


def everything(generation):
    for seed, k in enumerate(NAMES):
        check(area[k], seed, k)
    check(together, 50, "shared memory")
    check(readonly, 70, "read-only memory")
    for i in range(64):
        equal(get(mapped + i * PAGE), b"X" * PAGE if i == 3 else pattern(60, i), "mapped file")
    call("madvise", area["B"] + 10 * PAGE, 100 * PAGE, DONTNEED)
    equal(get(area["B"] + 10 * PAGE, 100 * PAGE), bytes(100 * PAGE), "memory not needed")
    check(area["B"], 1, "B", range(10, 110))
    area["C"] = call("mremap", area["C"], SIZE, 2 * SIZE, MREMAP_MAYMOVE)
    check(area["C"], 2, "C, moved")
    equal(get(area["C"] + SIZE), bytes(PAGE), "C, grown")
    put(area["C"] + 5 * PAGE, b"q" * PAGE)
    for protection in (READ, 0, READ | WRITE):
        call("mprotect", area["D"], SIZE, protection)
    check(area["D"], 3, "D, protected and not")
    put(area["D"] + 7 * PAGE + 100, b"zz")
    calls()
    threads()
    forks()
    call("munmap", area["I"] + 100 * PAGE, 50 * PAGE)
    call("mlock", area["J"], 8 * PAGE)
    with open("/proc/self/smaps") as f:
        f.read()
    put(together + 5 * PAGE, b"shared")


orphans = []


def orphan():
    """Keeps the memory of a process that has ended, through /proc/PID/mem."""
    pid = os.fork()
    if pid == 0:
        put(area["K"], b"orphan")
        time.sleep(3600)
        os._exit(0)
    while True:
        fd = os.open("/proc/%d/mem" % pid, os.O_RDONLY)
        if os.pread(fd, 6, area["K"]) == b"orphan":
            break
        os.close(fd)
        time.sleep(0.01)
    orphans.append(fd)
    os.kill(pid, 9)
    os.waitpid(pid, 0)


def kept(generation):
    """Everything is as the first generation left it."""
    check(area["A"], 0, "A")
    check(area["B"], 1, "B", range(10, 110))
    equal(get(area["B"] + 10 * PAGE, 100 * PAGE), bytes(100 * PAGE), "B, not needed")
    check(area["C"], 2, "C", (5,))
    equal(get(area["C"] + 5 * PAGE), b"q" * PAGE, "C")
    check(area["D"], 3, "D", (7,))
    equal(get(area["D"] + 7 * PAGE), patched(pattern(3, 7), 100, b"zz"), "D")
    check(area["E"], 4, "E", (9,))
    check(area["F"], 5, "F", (50, 51))
    for i in range(PAGES):
        equal(get(area["H"] + i * PAGE), patched(pattern(7, i), 0, b"parent"), "H")
    check(area["I"], 8, "I", range(100, 150))
    check(area["J"], 9, "J")
    check(area["K"], 10, "K")
    check(readonly, 70, "read-only memory")
    equal(get(together + 5 * PAGE, 6), b"shared", "shared memory")
    check(together, 50, "shared memory", (5,))
    for i in range(64):
        equal(get(mapped + i * PAGE), b"X" * PAGE if i == 3 else pattern(60, i), "mapped file")
    for g in range(2, generation):
        equal(get(area["L"] + g * PAGE), b"%d" % g * PAGE, "write of generation %d" % g)
    check(area["L"], 11, "L", range(2, generation))


def parent(generation):
    if generation == 1:
        everything(generation)
    else:
        kept(generation)
        put(area["L"] + generation * PAGE, b"%d" % generation * PAGE)
    orphan()


for n in (1, 2, 3):
    if os.fork() == 0:
        child(n)
with open(DIR + "/ready", "w"):
    pass
forever("parent", parent)
