"""Starts a supervisor: ``python -m noronha.runner.supervisor FOLDER``, or this file by its path."""

import sys

if not __package__:  # run by its path under `python -I -S`, which knows none of the folders that packages lie in
    sys.path.insert(0, __file__.rsplit("/noronha/runner/supervisor/", 1)[0])

from noronha.runner.supervisor.supervision import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
