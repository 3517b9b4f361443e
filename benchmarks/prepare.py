"""Tokens prepared per CPU second against TRL's SFT preparation, and peak memory as the rows grow tenfold.

The same rows, tokenizer (Mistral's Tekken) and template; labels on assistant turns; one process each; every run
prepares anew. Both must give the same ids and the same supervised tokens for every row, or there is no result. What the
clock leaves out: contestant_prepare.py. Run: python benchmarks/prepare.py [--source /path/to/pydoc-chat.jsonl].
"""

from __future__ import annotations

import argparse
import multiprocessing
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from common import REPOSITORY, Contestant, median, report, run
from workbench import ROWS, make_many_rows, make_mistral_model

CONFIG = """\
base_model: {model}
datasets:
  - path: {rows}
    type: chat_template
sequence_len: {sequence_len}
excess_length_strategy: truncate
dataset_num_proc: {num_proc}
dataset_prepared_path: {prepared}
output_dir: {folder}/out
learning_rate: 1e-4
"""
LONGEST = 131_072
"""Tokens that no row reaches: nothing is cut unless it is asked for."""


class Bench:
    """The rows of one size, and the contestants' runs on them."""

    def __init__(self, folder: Path, model: Path, source: Path, num_rows: int, options: argparse.Namespace) -> None:
        self.folder = folder / str(num_rows)
        self.folder.mkdir()
        self.model, self.options = model, options
        self.rows = self.folder / "rows.jsonl"
        self.prepared = self.folder / "prepared"
        make_many_rows(source, self.rows, num_rows)
        self.config = self.folder / "bench.yaml"
        self.config.write_text(
            CONFIG.format(
                model=model,
                rows=self.rows,
                folder=self.folder,
                prepared=self.prepared,
                sequence_len=options.sequence_len or LONGEST,
                num_proc=options.num_proc,
            )
        )

    def whet(self) -> dict[str, Any]:
        """Prepare anew; the set stays for `hit`."""
        shutil.rmtree(self.prepared, ignore_errors=True)
        return self._run("whet", "--config", str(self.config), "--digests", str(self.folder / "whet.digests"))

    def hit(self) -> dict[str, Any]:
        """Find the set prepared, in a new process, and open it."""
        return self._run("whet", "--config", str(self.config), "--again")

    def trl(self) -> dict[str, Any]:
        """Prepare anew."""
        output = self.folder / "trl"
        shutil.rmtree(output, ignore_errors=True)
        command = ["--model", str(self.model), "--rows", str(self.rows), "--output", str(output)]
        if self.options.sequence_len:
            command += ["--sequence-len", str(self.options.sequence_len)]
        return self._run("trl", *command, "--digests", str(self.folder / "trl.digests"))

    def check_equal(self) -> None:
        """Raise where the two did not give the same ids and supervised tokens, row by row."""
        ours, peer = ((self.folder / f"{name}.digests").read_bytes() for name in ("whet", "trl"))
        if ours == peer:
            return
        rows = [
            place
            for place in range(0, max(len(ours), len(peer)), 16)
            if ours[place : place + 16] != peer[place : place + 16]
        ]
        first = ", ".join(str(place // 16 + 1) for place in rows[:5])
        raise SystemExit(
            f"{len(rows):,} of {len(peer) // 16:,} rows differ, the first are lines {first} of {self.rows}"
        )

    def _run(self, name: str, *arguments: str) -> dict[str, Any]:
        script = str(REPOSITORY / "benchmarks" / "contestant_prepare.py")
        measurement = run(Contestant(name, [sys.executable, script, name, *arguments]), self.folder)
        print(f"{self.folder.name} rows, {name}: {measurement}", file=sys.stderr)
        return measurement


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--source", type=Path, default=ROWS, help="conversations that are repeated, with edits")
    arguments.add_argument("--rows", type=int, default=50_000)
    arguments.add_argument("--many-rows", type=int, default=500_000, help="ours alone, for memory; 0: not")
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--num-proc", type=int, default=1, help="dataset_num_proc of ours; TRL has one process")
    arguments.add_argument("--sequence-len", type=int, help="cut rows here, in both; not at all by default")
    arguments.add_argument("--folder", help="where temporary files go")
    options = arguments.parse_args()

    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        model = folder / "mistral"
        # In a process of its own: on Linux a child's peak memory begins at that of the process that starts it.
        maker = multiprocessing.get_context("spawn").Process(target=make_mistral_model, args=(folder,))
        maker.start()
        maker.join()
        if maker.exitcode:
            raise SystemExit("the tokenizer could not be made")
        bench = Bench(folder, model, options.source, options.rows, options)
        ours, hits, peer = [], [], []
        for _ in range(options.rounds):
            ours.append(bench.whet())
            hits.append(bench.hit())
            peer.append(bench.trl())
            bench.check_equal()
        more = {}
        if options.many_rows:
            shutil.rmtree(bench.folder)
            many = Bench(folder, model, options.source, options.many_rows, options)
            large, large_hit = many.whet(), many.hit()
            more = {
                "many_rows": options.many_rows,
                "many_rows_cpu_seconds": large["cpu_seconds"],
                "many_rows_wall_seconds": large["wall_seconds"],
                "many_rows_tokens_per_cpu_second": large["tokens"] / large["cpu_seconds"],
                "many_rows_peak_bytes": large["peak_bytes"],
                "many_rows_peak_over_fewer_rows": large["peak_bytes"] / median(ours, "peak_bytes"),
                "many_rows_hit_wall_seconds": large_hit["wall_seconds"],
                "many_rows_open_wall_seconds": large_hit["open_wall_seconds"],
            }

    num_tokens = median(ours, "tokens")
    speed, peer_speed = (num_tokens / median(runs, "cpu_seconds") for runs in (ours, peer))
    figures = {
        f"{who}_{key}": median(runs, key)
        for key in ("cpu_seconds", "wall_seconds", "peak_bytes", "start_bytes")
        for who, runs in (("ours", ours), ("peer", peer))
    }
    report(
        "prepare",
        unit="tokens/CPU second",
        ours=speed,
        peer=peer_speed,
        ratio=speed / peer_speed,
        goal="15 times TRL's tokens per CPU second; at most 10% more memory for ten times the rows; a hit in < 1 s",
        peer_name="TRL SFTTrainer's preparation, assistant_only_loss, packing off",
        rows=options.rows,
        tokens=num_tokens,
        supervised_tokens=median(ours, "supervised_tokens"),
        same_ids_and_supervised_tokens=True,
        **figures,
        ours_tokens_per_wall_second=num_tokens / median(ours, "wall_seconds"),
        peer_tokens_per_wall_second=num_tokens / median(peer, "wall_seconds"),
        ours_hit_wall_seconds=median(hits, "wall_seconds"),
        ours_hit_cpu_seconds=median(hits, "cpu_seconds"),
        ours_open_wall_seconds=median(hits, "open_wall_seconds"),
        rounds=options.rounds,
        **more,
        arguments={**vars(options), "source": options.source.name},
    )


if __name__ == "__main__":
    main()
