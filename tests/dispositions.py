"""What a process inherits from whoever started it, and tests must not depend on."""

import signal

__all__ = ["reset"]


def reset() -> None:
    """Let every signal do what it does by default, and block none, here and so in the processes started from here.

    Under ``nohup`` SIGHUP is ignored, in a shell's background job SIGINT and SIGQUIT, and some supervisors block
    SIGTERM: a program that is told to stop by one of them would then run on, whatever it does right. SIGPIPE, which
    Python ignores by itself, is given back to programs by ``subprocess``.
    """
    for number in sorted(signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP, signal.SIGPIPE}):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
