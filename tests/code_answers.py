"""Runs the code in an answer against asserts: apart from this process, and for two seconds at most."""

import json
import re
import subprocess
import sys

FENCE = re.compile(r"```[A-Za-z]*\n(.*?)```", re.DOTALL)
SECONDS = 2  # an assert; code that hangs fails it
# Every assert gets a fresh module, so that one that changes its input cannot spoil the next.
RUNNER = """
import json, signal, sys

def give_up(*_):
    raise TimeoutError

signal.signal(signal.SIGALRM, give_up)
job, passed = json.load(sys.stdin), []
for test in job["tests"]:
    space = {}
    signal.alarm(job["seconds"])
    try:
        exec(job["code"], space)
        exec(test, space)
        passed.append(True)
    except BaseException:
        passed.append(False)
    signal.alarm(0)
sys.__stdout__.write("\\n" + json.dumps(passed))
"""


def code_of(answer: str) -> str | None:
    """What stands in code fences, else the whole answer where it is code; None where there is none."""
    if blocks := FENCE.findall(answer):
        return "\n".join(blocks)
    try:
        compile(answer, "answer", "exec")
    except (SyntaxError, ValueError):
        return None
    return answer


def passed(answer: str, tests: list[str]) -> list[bool]:
    """Which asserts the answer's code passes. Code that ends the process passes none."""
    code = code_of(answer)
    if code is None:
        return [False] * len(tests)
    job = json.dumps({"code": code, "tests": tests, "seconds": SECONDS})
    limit = SECONDS * (len(tests) + 2) + 10
    try:
        run = subprocess.run(
            [sys.executable, "-I", "-c", RUNNER], input=job, capture_output=True, text=True, timeout=limit
        )
        return json.loads(run.stdout.splitlines()[-1])
    except (subprocess.TimeoutExpired, IndexError, ValueError):
        return [False] * len(tests)
