"""Entry point: start an IPython kernel prepared by hearth_kernel.

Run as "python launch.py -f CONNECTION_FILE". The folder of this file is taken
off sys.path again before any user code runs.
"""

import sys

HERE = sys.path.pop(0)


def main():
    sys.path.insert(0, HERE)
    from hearth_kernel import kernel

    sys.path.remove(HERE)
    kernel.start()


main()
