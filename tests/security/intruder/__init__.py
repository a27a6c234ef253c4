# SPDX-License-Identifier: Apache-2.0
"""The intruder: a program that runs in a container, tries what the checklist asks, and prints an answer for each attempt.

`program` is what to give to `python3 -IS -` on standard input; `names` are the checks that it will answer.
"""

import json
from importlib import import_module
from pathlib import Path

PARTS = ("attempt", "calls", "rights", "proc", "devices", "network", "known")
_FOLDER = Path(__file__).parent
_START = """
import json, os, signal, sys, types
for name in ("security", "security.intruder"):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = []
own = {{int(name) for name in os.listdir("/proc/self/fd")}}
for name, text in json.loads({parts!r}):
    module = sys.modules["security.intruder." + name] = types.ModuleType(name)
    module.__dict__["__name__"] = "security.intruder." + name
    exec(compile(text, name, "exec"), module.__dict__)
attempt = sys.modules["security.intruder.attempt"]
attempt.told.__dict__.update(json.loads({told!r}), descriptors=own)

def late(*_):
    raise TimeoutError("not over in time")

signal.signal(signal.SIGALRM, late)
for name, act in attempt.CHECKS.items():
    signal.alarm(60)
    try:
        held, detail = True, str(act())
    except Exception as error:
        held, detail = False, f"{{type(error).__name__}}: {{error}}"
    signal.alarm(0)
    print(json.dumps({{"check": name, "held": held, "detail": detail[:1000]}}), flush=True)
"""


def names() -> list[str]:
    """Return the names of all checks."""
    for part in PARTS:
        import_module(f"security.intruder.{part}")
    return list(import_module("security.intruder.attempt").CHECKS)


def program(told: dict[str, object]) -> bytes:
    """Return the whole program, with what the host has to tell it."""
    parts = [(part, (_FOLDER / f"{part}.py").read_text(encoding="utf-8")) for part in PARTS]
    return _START.format(parts=json.dumps(parts), told=json.dumps(told)).encode()
