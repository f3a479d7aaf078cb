"""Ctrl-C in the first seconds, which are imports, and in a library's long call: one line, within two seconds."""

import signal
import subprocess
import sys
import time

import pytest

from tests.scripts import PROJECT_DIR
from utils import command_line

STOPPED = "error: stopped; the same command goes on from here\n"
TERMINATED = "error: terminated; the same command goes on from here\n"
SECONDS = 2.0

# Runs a script as a person does, and signals it when it begins to import a module: a moment that no clock moves.
AT_IMPORT = """
import os, runpy, signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has it ignored by what runs in the background
at, number, script, *argv = sys.argv[1:]
class Finder:
    def find_spec(self, name, path, target=None):
        if name == at:
            sys.meta_path.remove(self)
            print(time.time(), flush=True)
            os.kill(os.getpid(), int(number))
sys.meta_path.insert(0, Finder())
sys.path.insert(0, "")
sys.argv = [script, *argv]
runpy.run_path(script, run_name="__main__")
"""


def signalled_at_import(module, number, script, *argv):
    command = [sys.executable, "-c", AT_IMPORT, module, str(int(number)), script, *map(str, argv)]
    done = subprocess.run(command, cwd=PROJECT_DIR, capture_output=True, text=True)
    assert done.stdout, f"{module} is never imported"
    return done, time.time() - float(done.stdout.split("\n")[0])


@pytest.mark.parametrize(
    "module",
    ["utils.answers", "pandas", "numpy.linalg", "torch", "torch.nn", "transformers", "safetensors", "scipy.sparse"],
)
def test_ctrl_c_while_libraries_are_imported(module, llama, tmp_path):
    argv = ["--model", llama, "--langs", "en", "--limit", 1, "--output_dir", tmp_path / "run"]
    done, seconds = signalled_at_import(module, signal.SIGINT, "probe_logit_lens.py", *argv)
    assert (done.returncode, done.stderr) == (130, STOPPED)
    assert seconds < SECONDS and not (tmp_path / "run").exists()


def test_sigterm_while_libraries_are_imported(llama, tmp_path):
    argv = ["--model", llama, "--langs", "en", "--limit", 1, "--output_dir", tmp_path / "run"]
    done, seconds = signalled_at_import("transformers", signal.SIGTERM, "QAinference.py", *argv)
    assert (done.returncode, done.stderr) == (143, TERMINATED) and seconds < SECONDS


# Calls that hear of no signal, one of them in an import that swallows what is raised in it.
LONG_CALL = "import hashlib; print('begun', flush=True); hashlib.pbkdf2_hmac('sha256', b'', b'', 2**31 - 1)"
SWALLOWS = """
import time
print('begun', flush=True)
end = time.monotonic() + 60
while time.monotonic() < end:
    try:
        time.sleep(1)
    except BaseException:
        pass
"""


@pytest.mark.parametrize(("number", "line"), [(signal.SIGINT, STOPPED), (signal.SIGTERM, TERMINATED)])
@pytest.mark.parametrize("code", [LONG_CALL, SWALLOWS], ids=["a long call", "swallowed"])
def test_a_library_that_hears_of_no_signal_is_ended(code, number, line):
    script = (
        f"import sys\nfrom utils import command_line\nsys.exit(command_line.run(lambda args: exec({code!r}), None))"
    )
    argv = [sys.executable, "-c", script]
    with subprocess.Popen(argv, cwd=PROJECT_DIR, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "begun\n"
        began = time.monotonic()
        process.send_signal(number)
        _, said = process.communicate()
    assert (process.returncode, said) == ((line is STOPPED and 130) or 143, line)
    assert time.monotonic() - began < SECONDS


def test_a_script_that_ends_leaves_no_thread_no_handler_and_no_open_file():
    code = "import os, signal, threading; from utils import command_line\n"
    code += "before = signal.getsignal(signal.SIGINT), len(os.listdir('/proc/self/fd'))\n"
    code += "for _ in range(3): command_line.run(lambda args: None, None)\n"
    code += "assert before == (signal.getsignal(signal.SIGINT), len(os.listdir('/proc/self/fd')))\n"
    code += "assert threading.active_count() == 1 and signal.set_wakeup_fd(-1) == -1"
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT_DIR, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


FORKS = """
import os, signal, sys, time
from utils import command_line
def script(args):
    child = os.fork()
    if not child:
        signal.signal(signal.SIGTERM, lambda *args: os._exit(7))
        time.sleep(60)
    time.sleep(0.5)
    os.kill(child, signal.SIGTERM)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    time.sleep(2 * command_line.SECONDS_TO_END)
sys.exit(command_line.run(script, None))
"""


def test_a_forked_child_that_is_ended_does_not_end_its_parent():
    done = subprocess.run([sys.executable, "-c", FORKS], cwd=PROJECT_DIR, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(("script", "status"), [(lambda args: None, 0), (lambda args: int("x"), 2)])
def test_a_signal_after_the_work_changes_nothing(number, script, status, monkeypatch, capsys):
    monkeypatch.setattr("utils.processes.release_all", lambda: signal.raise_signal(number))
    before = signal.getsignal(number)
    try:
        found = command_line.run(script, None)
    except (KeyboardInterrupt, command_line.Terminated) as error:  # pytest itself would stop at the first
        pytest.fail(f"{type(error).__name__} came through")
    assert found == status
    assert "stopped" not in capsys.readouterr().err and signal.getsignal(number) is before


@pytest.mark.parametrize(
    ("number", "status", "line"), [(signal.SIGINT, 130, STOPPED), (signal.SIGTERM, 143, TERMINATED)]
)
def test_a_signal_as_soon_as_it_is_heard_of_is_one_line(number, status, line, monkeypatch, capsys):
    """Between the moment that a handler is set and the script's first line."""
    before, install = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}, signal.signal

    def installed(of, handler):
        found = install(of, handler)
        if of == number and callable(handler) and handler is not before[number]:
            signal.raise_signal(number)
        return found

    monkeypatch.setattr(signal, "signal", installed)
    assert command_line.run(lambda args: pytest.fail("the script was begun"), None) == status
    assert capsys.readouterr().err == line
    assert {n: signal.getsignal(n) for n in before} == before
