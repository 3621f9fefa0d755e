"""Finds the verb, runs it, and turns what it raises into a message and an exit code.

Exit codes: 0 done; 1 done, and the answer is no; 2 usage, bad file, missing runtime; 3 device lost; 70 a bug in
latency-lab; 130 interrupted.
"""

from __future__ import annotations

import argparse
import difflib
import os
import shlex
import sys
import traceback
from collections.abc import Sequence

import latency_lab
from latency_lab.cli import compare, doctor, fit, measure, predict, profile_, profiles, show, shrink, validate
from latency_lab.errors import DeviceLostError, LatencyLabError, UsageError
from latency_lab.extras import missing

VERBS = {
    "doctor": doctor,
    "profile": profile_,
    "fit": fit,
    "profiles": profiles,
    "show": show,
    "predict": predict,
    "measure": measure,
    "validate": validate,
    "compare": compare,
    "shrink": shrink,
}


def parser() -> argparse.ArgumentParser:
    """The parser of the whole command line; what it parses has `verb`, and `run` that takes it.

    Example:
        >>> from latency_lab.cli.main import parser
        >>> parser().parse_args(["predict", "m.keras", "--profile", "pi4.json"]).profile
        'pi4.json'
    """
    whole = argparse.ArgumentParser(
        "latency-lab",
        description="Profile a device, predict what a network costs there, and shrink it to a latency budget.",
        epilog="Exit codes: 0 done; 1 done, and the answer is no (doctor: not to be trusted; "
        "compare: not faster, or unstable; shrink: over the target, or nothing left out); 2 usage, bad file, missing "
        "runtime; 3 device lost; 70 a bug; 130 interrupted. Data goes to stdout, all else to stderr; a file named - is "
        "stdin or stdout.",
    )
    whole.add_argument("--version", action="version", version=f"latency-lab {latency_lab.__version__}")
    verbs = whole.add_subparsers(dest="verb", required=True, metavar="verb")
    for name, module in VERBS.items():
        description = (module.__doc__ or "").strip()
        verb = verbs.add_parser(
            name,
            help=description.partition("\n")[0],
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(verb)
        verb.add_argument("--json", action="store_true", help="print JSON")
        verb.set_defaults(run=module.run)
    return whole


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line.

    Args:
        argv: the words after the program's name; those of the process when None.

    Returns:
        The exit code.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        _check_verb(words)
        code: int = (lambda args: args.run(args))(parser().parse_args(words))
        sys.stdout.flush()
        return code
    except DeviceLostError as error:
        again = shlex.join(["latency-lab", *words])
        return _fail(f"{error}\nWhen it answers, go on with: {again}", error.exit_code)
    except LatencyLabError as error:
        return _fail(str(error), error.exit_code)
    except ModuleNotFoundError as error:
        found = missing(error, "latency-lab " + " ".join(words[:1]))
        return _fail(str(found), found.exit_code) if found else _bug()
    except KeyboardInterrupt:
        return _fail(f"interrupted. What was measured is kept; go on with: {shlex.join(['latency-lab', *words])}", 130)
    except BrokenPipeError:  # the reader has gone: `latency-lab show p.json | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        return _fail(f"{error.filename or 'input or output'}: {error.strerror or error}", 2)
    except Exception:
        return _bug()


def _check_verb(words: Sequence[str]) -> None:
    """Say which verb was meant, where argparse lists them all."""
    if not words or words[0].startswith("-") or words[0] in VERBS:
        return
    near = difflib.get_close_matches(words[0], VERBS, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise UsageError(f"there is no verb {words[0]!r}.{hint} The verbs: {', '.join(VERBS)}")


def _fail(message: str, code: int) -> int:
    print(f"\nlatency-lab: {message}" if code == 130 else f"latency-lab: {message}", file=sys.stderr)
    return code


def _bug() -> int:
    traceback.print_exc()
    return _fail("this is a bug in latency-lab: the lines above say where. Please report them with the command.", 70)


if __name__ == "__main__":
    sys.exit(main())
