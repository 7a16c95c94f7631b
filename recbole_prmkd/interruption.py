"""Ctrl-C and SIGTERM: one line, exit code 130 or 143 within three seconds, and no child process left.

The signal is raised as KeyboardInterrupt in the main thread, so that locks are freed and temporary folders removed.
What still runs after `_GRACE` seconds, such as a long call into C code, is ended as by kill -9. That loses no more than
the interruption itself: finished files are put in place whole.
"""

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

import psutil

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_GRACE = 1.5  # seconds for the orderly end; the children's end and Python's own come on top
_reuse = "the same command reuses what is finished: item vectors, teachers and teacher caches"
_ending: "_Ending | None" = None


def say_reuse(text: str) -> None:
    """Set what the line of an interruption says after `Interrupted; `: how to go on, and what is reused."""
    global _reuse
    _reuse = text


@contextmanager
def interruptible() -> Iterator[None]:
    """Inside, Ctrl-C and SIGTERM end the process as the module says; elsewhere than in the main thread: nothing."""
    global _ending
    if _ending is not None or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    ending = _ending = _Ending()
    fd = signal.set_wakeup_fd(ending.written.fileno(), warn_on_full_buffer=False)
    handle_again()
    try:
        yield
    except BaseException:  # what an interruption breaks may end in any error
        if ending.signal:
            ending.end()
        raise
    finally:
        _ending = None
        signal.set_wakeup_fd(fd)
        for number, handler in before.items():
            signal.signal(number, handler)
        ending.written.close()


def handle_again() -> None:
    """Handle the signals after a library (Ray) has put handlers of its own in place."""
    if _ending is not None:
        for number in _SIGNALS:
            signal.signal(number, _ending.handle)


class _Ending:
    """The end of this process: orderly in the main thread, or else by a thread that waits for the signal."""

    def __init__(self) -> None:
        self.signal = 0
        self.children: list[psutil.Process] = []
        self._lock = threading.Lock()
        # Python's C code writes the signal's number there even while the main thread is inside a long call.
        self._read, self.written = socket.socketpair()
        self.written.setblocking(False)
        threading.Thread(target=self._watch, daemon=True).start()

    def handle(self, number: int, frame: FrameType | None) -> None:
        if not self.signal:  # a second one must not break the orderly end
            self.signal = number
            self.children = psutil.Process().children(recursive=True)
            raise KeyboardInterrupt

    def _watch(self) -> None:
        while received := self._read.recv(1):
            if received[0] in _SIGNALS:
                children = psutil.Process().children(recursive=True)  # grandchildren may lose their parent
                time.sleep(_GRACE)
                self.signal, self.children = received[0], self.children + children
                self.end()

    def end(self) -> None:
        """Kill the children, say the line, exit; does not return."""
        self._lock.acquire()
        late = threading.Timer(1.0, os._exit, [128 + self.signal])  # a full pipe would keep the line for ever
        late.daemon = True
        late.start()
        children = {*self.children, *psutil.Process().children(recursive=True)}
        for child in children:
            with suppress(psutil.Error):
                child.kill()
        psutil.wait_procs(children, timeout=0.5)
        with suppress(OSError, ValueError):
            sys.stdout.flush()
        start = "\n" if sys.stderr.isatty() else ""  # after a progress bar and the terminal's ^C
        with suppress(OSError):
            os.write(2, f"{start}recbole_prmkd: Interrupted; {_reuse}.\n".encode())
        os._exit(128 + self.signal)


def _in_fork() -> None:
    """A forked process (a loader's worker) ends by itself and does not report its signals to this one."""
    if _ending is not None:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_fork)


@contextmanager
def children_wait_for_signals() -> Iterator[None]:
    """Inside, processes are started that Ctrl-C does not reach before they call `end_at_once`."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def end_at_once() -> None:
    """In a child process: Ctrl-C ends it without a word, since its parent says what there is to say."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
