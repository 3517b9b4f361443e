"""``python -m fuzzing [TARGET ...] [--runs N] [--seconds S] [--seed N]``: each target in a process of its own."""

from __future__ import annotations

import argparse
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from fuzzing.targets import FINDINGS, TARGETS, inputs

MOST_BYTES = 32_768
TIMEOUT_SECONDS = 25
"""Of one input: what a template may take, and a little."""
MEMORY_MIB = 4096


def main() -> int:
    arguments = _arguments()
    names = arguments.targets or list(TARGETS)
    if arguments.inside:
        _fuzz(names[0], arguments)
        return 0
    failed = [name for name in names if not _in_a_process(name, arguments)]
    sys.stdout.write(f"{len(names)} targets" + (f"; broken: {', '.join(failed)}\n" if failed else ", none broken\n"))
    return 1 if failed else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m fuzzing", description="Fuzz what whet reads from strangers.")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(TARGETS)}; all if none is named")
    parser.add_argument("--runs", type=int, help="inputs for each target; its own number if not given")
    parser.add_argument("--seconds", type=int, default=0, help="at most, for each target")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1, 2**31))
    parser.add_argument("--keep", type=Path, help="folder for what was found interesting; removed if not given")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    unknown = [name for name in arguments.targets if name not in TARGETS]
    if unknown:
        parser.error(f"there is no target {', '.join(unknown)}; there are {', '.join(TARGETS)}")
    return arguments


def _in_a_process(name: str, arguments: argparse.Namespace) -> bool:
    """Fuzz one target; what breaks it is kept in `FINDINGS`."""
    with tempfile.TemporaryDirectory(prefix="whet-fuzz-") as temporary:
        work = Path(temporary)
        corpus = (arguments.keep or work) / name
        corpus.mkdir(parents=True, exist_ok=True)
        for number, content in enumerate(inputs(name).values()):
            (corpus / f"seed-{number}").write_bytes(content)
        (work / "broken").mkdir()
        words = [
            sys.executable,
            "-m",
            "fuzzing",
            name,
            "--inside",
            "--seed",
            str(arguments.seed),
            "--keep",
            str(corpus),
        ]
        words += ["--runs", str(arguments.runs or TARGETS[name].runs), "--seconds", str(arguments.seconds)]
        environment = {**os.environ, "FUZZING_WORK": temporary, "HF_HUB_OFFLINE": "1", "TMPDIR": temporary}
        done = subprocess.run(words, capture_output=True, env=environment, check=False)
        lines = (done.stdout + done.stderr).decode("utf-8", "replace").splitlines()
        told = "\n".join(line for line in lines if "Instrumenting" not in line)
        last = next((line for line in reversed(told.splitlines()) if line.startswith(("Done", "#"))), "")
        sys.stdout.write(f"{name}: {last} (seed {arguments.seed}, exit code {done.returncode})\n")
        sys.stdout.flush()
        if done.returncode == 0:
            return True
        sys.stdout.write(told[-8000:])
        for path in sorted((work / "broken").iterdir()):
            place = FINDINGS / name / path.name
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, place)
            sys.stdout.write(f"{name}: kept in {place}\n")
    return False


def _fuzz(name: str, arguments: argparse.Namespace) -> None:
    """In the process of the target: its code is instrumented as it is imported, so nothing of whet may be before."""
    import atheris

    from fuzzing.mutations import of_shape

    target, work = TARGETS[name], Path(os.environ["FUZZING_WORK"])
    folder = work / "folder"
    folder.mkdir()
    os.chdir(folder)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with atheris.instrument_imports(include=["whet", *target.packages]):
        first = next(iter(target.seeds().values()))
        target.read(folder, first)
    mutate = of_shape(target.shape)
    atheris.Setup(
        [sys.argv[0], str(arguments.keep), f"-runs={arguments.runs}", f"-seed={arguments.seed}",
         f"-max_total_time={arguments.seconds}", f"-timeout={TIMEOUT_SECONDS}", f"-rss_limit_mb={MEMORY_MIB}",
         f"-malloc_limit_mb={MEMORY_MIB // 2}", f"-max_len={MOST_BYTES}", f"-artifact_prefix={work / 'broken'}/"],
        lambda data: target.read(folder, data),
        custom_mutator=mutate,
        internal_libfuzzer=True,
    )  # fmt: skip
    atheris.Fuzz()


if __name__ == "__main__":
    raise SystemExit(main())
