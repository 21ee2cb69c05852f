"""Load on `deepintuit serve`: many clients at once, each with clips of its own, compared with what predict says.

    python benchmarks/serve_load.py WORKBENCH RUN FOLDER                 50 clients with 20 clips each
    python benchmarks/serve_load.py WORKBENCH RUN FOLDER --queue 16      in a line for fewer of them

A server process is started on the workbench; each client sends its clips one after the other, every other one by path,
and asks again when it is told to. The clips of FOLDER go round. Nothing may be lost, answered twice, or other than by
`deepintuit predict`: label, trace and frames to the letter, probabilities to 0.001 (their last digits hang on
which clips are in a batch).
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np

import deepintuit

EXACT = ("clip_id", "label", "provisional", "malformed", "trace", "frame_hash", "tokens", "abstain")


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("workbench", "run", "folder"):
        options.add_argument(name)
    options.add_argument("--clients", type=int, default=50)
    options.add_argument("--each", type=int, default=20)
    options.add_argument("--queue", type=int, default=64)
    options = options.parse_args()
    root = Path(options.folder).resolve()
    clips = sorted(root.glob("*.mp4"))[: options.clients * options.each]
    began = time.monotonic()
    frame = deepintuit.load(options.run, options.workbench).predict(clips, name="serve-load")
    alone = time.monotonic() - began
    known = {Path(row["path"]).name: row for row in frame.to_dict("records")}
    command = ["-m", "deepintuit.cli", "serve", options.run, "--workbench", options.workbench, "--port", "0"]
    command += ["--queue", str(options.queue), "--root", str(root)]
    with subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, text=True) as process:
        address = re.search(r"http://[\d.:]+", process.stdout.readline())[0]
        began, refused = time.monotonic(), Counter()

        def visit(number: int) -> list[tuple[str, dict, float]]:
            heard = []
            with httpx.Client(base_url=address, timeout=None) as client:
                for turn in range(options.each):
                    clip = clips[(number * options.each + turn) % len(clips)]
                    asked = time.monotonic()
                    while True:
                        files = {"files": {"file": (clip.name, clip.read_bytes())}}
                        answer = client.post("/predict", **({"data": {"path": clip.name}} if turn % 2 else files))
                        if answer.status_code != 429:
                            break
                        refused[number] += 1
                        time.sleep(int(answer.headers["Retry-After"]))
                    answer.raise_for_status()
                    heard.append((clip.name, answer.json(), time.monotonic() - asked))
            return heard

        with ThreadPoolExecutor(options.clients) as pool:
            heard = [one for many in pool.map(visit, range(options.clients)) for one in many]
        took = time.monotonic() - began
        told = httpx.get(f"{address}/metrics").text
        process.terminate()
    count = {name: float(value) for name, value in re.findall(r"^(\S+) (\S+)$", told, re.MULTILINE)}
    ended = {name.split('"')[1]: int(n) for name, n in count.items() if name.startswith("deepintuit_questions_total")}
    wrong = [name for name, answer, _ in heard if any(answer[key] != _plain(known[name][key]) for key in EXACT)]
    labels = [name for name in frame if name.startswith("p_")]
    apart = max(
        abs((answer[key] or 0) - np.nan_to_num(known[name][key])) for name, answer, _ in heard for key in labels
    )
    waits = np.quantile([wait for *_, wait in heard], [0.5, 0.95])
    asked = options.clients * options.each
    print(f"{asked} asked, {len(heard)} heard, {len(clips)} clips; ended: {ended}; {sum(refused.values())} times 429")
    print(
        f"other than predict: {len(wrong)}; probabilities apart by at most {apart:.2g}; exit code {process.returncode}"
    )
    print(f"{took:.0f} s, {asked / took:.1f} a second; half within {waits[0]:.1f} s, 95 % within {waits[1]:.1f} s")
    print(f"{count['deepintuit_batch_clips_sum'] / count['deepintuit_batch_clips_count']:.1f} clips a batch")
    print(f"predict alone: {len(clips) / alone:.1f} a second")
    answered = sum(ended.get(how, 0) for how in ("answered", "abstained", "unlike"))
    return 0 if len(heard) == asked == answered and not wrong and apart < 1e-3 and not process.returncode else 1


def _plain(value):
    """As JSON has it."""
    return None if value is None or value != value else value


if __name__ == "__main__":
    sys.exit(main())
