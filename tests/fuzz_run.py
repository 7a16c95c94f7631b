"""What every fuzzed input is held to: it ends well, or with exit code 1 and one sentence that leaves nothing behind.

The command line runs inside the process, in an empty folder. Texts among the inputs try to run code that makes a file
`P` (`fuzz_inputs.CODE`).
"""

import contextlib
import io
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from hypothesis import HealthCheck, event, reject, settings

import run_recbole_prmkd as command_line

EXAMPLES = int(os.environ.get("PRMKD_EXAMPLES", "0"))
SECONDS = 20  # longer runs are legal, but are no test: a number of epochs may be anything
_LONGEST = 1600  # characters of a sentence, which may quote values
# What a run may write in the folder that it is started in.
_WRITTEN = {"out", "runs", "cache", "teachers", "saved", "log", "log_tensorboard", "data", "dataset"}


class Slow(BaseException):
    """The run takes too long for a test."""


def fuzzed(few: int) -> Callable[..., object]:
    """The settings of a fuzz test: `few` fixed examples, or PRMKD_EXAMPLES new ones (by `--hypothesis-seed`)."""
    return settings(
        max_examples=EXAMPLES or few,
        derandomize=not EXAMPLES,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


@contextlib.contextmanager
def fresh_folder() -> Iterator[Path]:
    """An empty working folder; environment, threads and warnings are put back."""
    here, environment, threads = os.getcwd(), dict(os.environ), torch.get_num_threads()
    with tempfile.TemporaryDirectory() as name:
        os.chdir(name)
        try:
            yield Path(name)
        finally:
            os.chdir(here)
            os.environ.clear()
            os.environ.update(environment)
            torch.set_num_threads(threads)


def ends(arguments: Sequence[str], result: str | None = "out/result.json", stop: type | None = None) -> str | None:
    """Run the command line in the current folder; the sentence that it ends with, or None if it ended well.

    Args:
        result: the file that a good run has written; what lies beside it must not be there after a refusal.
        stop: raised by a test in the place of what would take long; counts as a good end.
    Raises:
        AssertionError: the contract is broken. Any other exception is a traceback that the user would see.
    """
    before, written = set(os.listdir()), Path(result).parent if result else None
    said = _ended(arguments, stop)
    left = {name for name in os.listdir() if name not in before} - _WRITTEN
    assert not left, f"the run left {left}"
    if said is None:
        event("ended well")
        assert stop or result is None or Path(result).is_file(), "no sentence and no result"
        return None
    event("one sentence")
    assert said.startswith("recbole_prmkd: ") and "\n" not in said and "Traceback" not in said, said
    assert len(said) < _LONGEST, said
    # What was finished before is kept for the next run.
    kept = (
        written is not None and any((*written.glob("unfinished/*.pth"), *written.glob("unfinished/progress*")))
    ) or "What it had written before is in" in said
    assert written is None or kept or not written.exists(), f"{said} left {sorted(written.rglob('*'))}"
    return said


def _ended(arguments: Sequence[str], stop: type | None) -> str | None:
    given, sys.argv = sys.argv, ["run_recbole_prmkd.py", *arguments]
    alarm = signal.signal(signal.SIGALRM, _too_slow)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            command_line.main()
    except Slow:
        event("longer than a test takes")
        reject()
    except SystemExit as end:
        return None if end.code in (None, 0) else str(end.code)
    except BaseException as error:
        if stop is None or not isinstance(error, stop):
            raise
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, alarm)
        sys.argv = given
    return None


def _too_slow(number: int, frame: object) -> None:
    raise Slow
