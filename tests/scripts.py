"""Scripts that run in a process of their own."""

import pathlib
import re
import subprocess
import sys
import textwrap


def run(body, *args, stdin=False, path=None, **kwargs):
    """Run a script, from a file, from its standard input or by ``-c``; return what it did."""
    body = "import os, signal, sys, time, numpy as np, pescador\n" + textwrap.dedent(body)
    command = [sys.executable, "-", *args] if stdin else [sys.executable, "-c", body, *args]
    if path is not None:
        path.write_text(body)
        command = [sys.executable, path, *args]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=60, input=body if stdin else "", **kwargs
    )


def on_page(page, name):
    """Return the script that a page of the documentation tells to save under a name."""
    text = (pathlib.Path(__file__).parents[1] / "docs" / page).read_text()
    (block,) = re.findall(rf":caption: {re.escape(name)}\n\n((?:   .*\n|\n)+)", text)
    return textwrap.dedent(block)
