"""The fault test: the digits sweep with two workers that are killed, interrupted, suspended and run out of disk, again and
again at seeded random moments, must end with the records of an uninterrupted one.

python tests/system/faults.py                      50 kills, 8 SIGTERMs, 3 suspensions, 5 full disks (minutes)
python tests/system/faults.py --kills 200 --seed 7
"""

import argparse
import hashlib
import json
import os
import random
import resource
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

# A short pretraining and few epochs. State is written at every chance, so that kills hit its writing too.
METHODS = "vera,lora,full"
SWEEP = [
    *("-m", "model=digits_vit", "task=digits", f"method={METHODS}", "seed=0,1"),
    *("model.pretrain.epochs=choice(4)", "train.epochs=4", "train.checkpoint_seconds=0", "device=cpu", "progress=false"),
]
CLAIM_TIMEOUT = 10  # seconds; a suspended worker sleeps longer
WORKERS = 2
FREE = [0, 40_000, 1_000_000, 3_000_000, 9_000_000, 12_000_000]  # bytes left on the full disks
DISK = 64_000_000


ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": ""}


class Test:
    """Counts, and the faults still to come; shared by the threads that mind one worker each."""

    def __init__(self, seed: int, kills: int, terms: int, stops: int):
        self.random = random.Random(seed)
        self.lock = threading.Lock()
        self.left = ["kill"] * kills + ["term"] * terms + ["stop"] * stops
        self.random.shuffle(self.left)
        self.counts: Counter[str] = Counter()
        self.where: Counter[str] = Counter()
        self.errors: list[str] = []
        self.slowest = 0.0
        self.lines: Counter[str] = Counter()

    def draw(self) -> tuple[str, str, float, int] | None:
        """A fault: its kind, when it comes (after the start, after a claim, at a file operation), seconds, number."""
        with self.lock:
            if not self.left:
                return None
            kind = self.left.pop()
            when = self.random.choices(["started", "claimed", "operation"], [1, 4, 4])[0]
            if kind != "kill" and when == "operation":
                when = "claimed"
            return kind, when, self.random.uniform(0, 4), self.random.randint(1, 120)

    def give_back(self, kind: str) -> None:
        with self.lock:
            self.left.insert(0, kind)

    def note(self, **counts: int) -> None:
        with self.lock:
            self.counts.update(counts)


class Folder:
    """Where one sweep runs: its code, results, state and cache."""

    def __init__(self, root: Path, code: Path, cache: Path | None = None):
        self.code = code
        self.root, self.results, self.work = root, root / "results", root / "work"
        self.cache = cache or root / "cache"

    def arguments(self, sweep: list[str]) -> list[str]:
        """Of scripts/train.py."""
        paths = [f"results_dir={self.results}", f"work_dir={self.work}", f"cache_dir={self.cache}"]
        return [*sweep, f"claim_timeout={CLAIM_TIMEOUT}", *paths]

    def start(self, sweep: list[str], **options) -> subprocess.Popen:
        """The sweep as a command of its own."""
        command = [sys.executable, str(self.code / "scripts" / "train.py"), *self.arguments(sweep)]
        return subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT, **options
        )

    def claimed_by(self, pid: int) -> bool:
        for path in (self.results / "claims").glob("[!.]*.json"):
            try:
                if json.loads(path.read_text())["pid"] == pid:
                    return True
            except (OSError, ValueError):
                continue
        return False

    def records(self) -> dict[str, dict]:
        return {path.name: json.loads(path.read_bytes()) for path in sorted((self.results / "runs").glob("[!.]*.json"))}

    def temporaries(self) -> list[str]:
        """Half-written files and folders."""
        found = [*self.results.rglob(".*"), *self.work.rglob(".*"), *self.cache.glob("digits_vit/.*")]
        return [str(path.relative_to(self.root if path.is_relative_to(self.root) else self.cache)) for path in found]

    def leftovers(self) -> list[str]:
        """Everything that a finished sweep must not leave."""
        claims = [*(self.results / "claims").glob("*"), *self.work.glob("*/state.safetensors"), *self.work.glob("*/*.old")]
        return [*self.temporaries(), *(str(path.relative_to(self.root)) for path in claims)]


class Server:
    """Forks one worker after the other (tests/faults/server.py)."""

    def __init__(self, code: Path, scratch: Path, number: int):
        self.errors = scratch / f"worker{number}.txt"
        command = [sys.executable, str(ROOT / "tests" / "faults" / "server.py"), str(code), METHODS]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=ENVIRONMENT
        )
        self.pid = 0
        self.returncode: int | None = None

    def start(self, arguments: list[str], fault_at: int | None) -> None:
        request = {"args": arguments, "fault_at": fault_at, "stderr": str(self.errors)}
        self.process.stdin.write(json.dumps(request).encode() + b"\n")
        self.process.stdin.flush()
        self.returncode, self.pid = None, self._line()

    def wait(self, seconds: float | None = None) -> bool:
        """Whether the worker has ended, within so many seconds."""
        if self.returncode is None and select.select([self.process.stdout], [], [], seconds)[0]:
            self.returncode = self._line()
        return self.returncode is not None

    def _line(self) -> int:
        line = b""
        while not line.endswith(b"\n"):  # unbuffered, so that select sees what has not been read
            byte = os.read(self.process.stdout.fileno(), 1)
            if not byte:
                raise RuntimeError("the server of workers has ended")
            line += byte
        return int(line)

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def comparable(record: dict) -> dict:
    """A record without what may differ: seconds, restarts and the time of day."""
    kept = json.loads(json.dumps(record))
    for group, key in (("cost", "seconds"), ("cost", "restarts"), ("provenance", "started"), ("provenance", "finished")):
        del kept[group][key]
    return kept


def kept(work: Path) -> dict[str, str]:
    """SHA-256 of every file of trained weights. safetensors writes its header's entries in no certain order."""
    found = {}
    for path in sorted(path for path in work.rglob("*") if path.is_file()):
        content = path.read_bytes()
        if path.suffix == ".safetensors":
            size = 8 + int.from_bytes(content[:8], "little")
            content = json.dumps(json.loads(content[8:size]), sort_keys=True).encode() + content[size:]
        found[str(path.relative_to(work))] = hashlib.sha256(content).hexdigest()
    return found


def differences(found: dict, wanted: dict, where: str = "") -> list[str]:
    """The keys at which two records differ."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        parts = (differences(found.get(key), wanted.get(key), f"{where}.{key}") for key in sorted(found.keys() | wanted.keys()))
        return [line for part in parts for line in part]
    return [] if found == wanted else [f"{where.lstrip('.')}: {str(found)[:60]} instead of {str(wanted)[:60]}"]


def differing(folder: Folder, wanted: dict[str, dict]) -> list[str]:
    """How a folder's records differ from the wanted ones, a line each."""
    found = folder.records()
    lines = [f"{name}: a record too many or too few" for name in found.keys() ^ wanted.keys()]
    for name in sorted(found.keys() & wanted.keys()):
        parts = differences(comparable(found[name]), comparable(wanted[name]))
        lines += [f"{name} differs from the uninterrupted run's: {'; '.join(parts)}"] * bool(parts)
    return lines


def mind(test: Test, folder: Folder, server: Server) -> None:
    """Start a worker again and again, each time with a fault, until it finds the sweep done."""
    while True:
        fault = test.draw()
        kind, when, seconds, number = fault or ("none", "started", 0.0, 0)
        server.start(folder.arguments(SWEEP), number if when == "operation" else None)
        asked = 0.0
        if fault and when != "operation":
            while when == "claimed" and not folder.claimed_by(server.pid) and not server.wait(0.02):
                pass
            if not server.wait(seconds):
                asked = time.monotonic()
                os.kill(server.pid, {"kill": signal.SIGKILL, "term": signal.SIGTERM, "stop": signal.SIGSTOP}[kind])
                if kind == "stop":
                    time.sleep(1.5 * CLAIM_TIMEOUT)
                    os.kill(server.pid, signal.SIGCONT)
        server.wait()
        seconds_to_leave = time.monotonic() - asked
        text = server.errors.read_text()
        test.note(starts=1)
        with test.lock:
            if "Traceback" in text or "error:" in text:
                test.errors.append(text)
            test.lines.update(line.split("  ")[0] for line in text.splitlines() if line.endswith(" s") and "accuracy" in line)
            test.counts["taken over by another worker"] += text.count("taken over")
            test.counts["waited for another worker"] += text.count("comes back to it")
            if server.returncode == -signal.SIGKILL:
                test.counts["kills"] += 1
                found = folder.temporaries()
                pretraining = any(path.startswith(("digits_vit/", "cache/digits_vit/")) for path in found)
                inside = "pretraining" if pretraining else "a half-written file" if found else when
                test.where[{"operation": "at a file operation"}.get(inside, inside)] += 1
            elif kind == "term" and server.returncode == 128 + signal.SIGTERM:
                test.counts["terms"] += 1
                test.slowest = max(test.slowest, seconds_to_leave)
                test.where["SIGTERM with a checkpoint" if "at step" in text else "SIGTERM elsewhere"] += 1
            elif server.returncode == 0 and kind == "stop" and asked:
                test.counts["stops"] += 1
            elif server.returncode != 0:
                test.errors.append(f"exit status {server.returncode} after {kind} {when}: {text}")
        if server.returncode == 0:
            if fault and not (kind == "stop" and asked):
                test.give_back(kind)  # it was through before its time came
            return


def watch(folder: Folder, stop: threading.Event, seen: dict[str, tuple[int, int, int]], errors: list[str]) -> None:
    """Every record as first seen; none may ever change."""
    while not stop.wait(0.2):
        for path in (folder.results / "runs").glob("[!.]*.json"):
            about = path.stat()
            found = (about.st_ino, about.st_mtime_ns, about.st_size)
            if seen.setdefault(path.name, found) != found:
                errors.append(f"{path.name} was written twice")


def compare(folder: Folder, reference: Folder, errors: list[str]) -> None:
    errors += differing(folder, reference.records())
    found, wanted = kept(folder.work), kept(reference.work)
    if found != wanted:
        names = sorted(name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name))
        errors.append(f"kept weights differ from the uninterrupted sweep's: {', '.join(names)}")
    if folder.leftovers():
        errors.append(f"left behind: {', '.join(folder.leftovers())}")
    if (folder.results / "failed").is_dir() and list((folder.results / "failed").iterdir()):
        errors.append("a failure was written")


def sweep_under_faults(test: Test, folder: Folder, reference: Folder, servers: list[Server]) -> None:
    stop, seen = threading.Event(), {}
    watcher = threading.Thread(target=watch, args=(folder, stop, seen, test.errors))
    watcher.start()
    test.lines.clear()
    minders = [threading.Thread(target=mind, args=(test, folder, server)) for server in servers]
    for minder in minders:
        minder.start()
    for minder in minders:
        minder.join()
    stop.set()
    watcher.join()
    twice = [name for name, count in test.lines.items() if count > 1]
    test.errors.extend(f"{name} was computed twice" for name in twice)
    compare(folder, reference, test.errors)
    restarts = sum(record["cost"]["restarts"] for record in folder.records().values())
    test.note(rounds=1, restarts=restarts, records=len(folder.records()))


def full_disks(test: Test, where: Path, reference: Folder, disks: int) -> str:
    """The sweep of one seed on a disk with too little space, then with enough; returns how the disk was made full."""
    sweep = [*SWEEP[:4], "seed=0", *SWEEP[5:]]
    how = ""
    for number in range(disks):
        disk = where / f"disk{number}"
        disk.mkdir()
        free = FREE[number % len(FREE)]
        mounted = (
            subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK}", "none", str(disk)], capture_output=True).returncode
            == 0
        )
        folder = Folder(disk, reference.code, None if number % 2 == 0 else reference.cache)
        filler, limit = disk / "filler", None
        try:
            if mounted:
                how = f"a tmpfs of {DISK // 10**6} MB filled but for 0 to {max(FREE) / 1e6:g} MB"
                usage = shutil.disk_usage(disk)
                with filler.open("wb") as file:
                    for _ in range((usage.free - free) // 4096):
                        file.write(b"\0" * 4096)
            else:
                how = f"RLIMIT_FSIZE of 0 to {max(FREE) / 1e6:g} MB (mounting is not allowed here)"
                limit = lambda free=free: resource.setrlimit(resource.RLIMIT_FSIZE, (free, free))  # noqa: E731
            process = folder.start(sweep, preexec_fn=limit)
            text = process.communicate()[1]
            lines = [line for line in text.splitlines() if line]
            if process.returncode == 0:
                test.errors.append(f"{free} bytes were enough: {text}")
            elif (
                process.returncode not in (1, 2) or "Traceback" in text or not any(line.startswith("error: ") for line in lines)
            ):
                test.errors.append(f"full disk ({free} bytes free): exit status {process.returncode}: {text}")
            early = {name: record for name, record in reference.records().items() if name in folder.records()}
            test.errors += differing(folder, early)
            test.counts["errors on full disks"] += sum(line.startswith("error: ") for line in lines)
            filler.unlink(missing_ok=True)
            process = folder.start(sweep)
            text = process.communicate()[1]
            if process.returncode != 0:
                test.errors.append(f"after a full disk: exit status {process.returncode}: {text}")
            wanted = {name: value for name, value in reference.records().items() if name.endswith("--s0.json")}
            test.errors += differing(folder, wanted)
            if folder.leftovers():
                test.errors.append(f"left behind by a full disk: {', '.join(folder.leftovers())}")
            test.note(disks=1)
        finally:
            if mounted:
                subprocess.run(["umount", str(disk)], check=True)
    return how


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50, help="SIGKILLs at random moments (default: 50)")
    parser.add_argument("--terms", type=int, default=8, help="SIGTERMs (default: 8)")
    parser.add_argument("--stops", type=int, default=3, help="workers suspended beyond their claim's timeout (default: 3)")
    parser.add_argument("--disks", type=int, default=5, help="full disks (default: 5)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: 0)")
    options = parser.parse_args()
    began = time.monotonic()
    test = Test(options.seed, options.kills, options.terms, options.stops)
    with tempfile.TemporaryDirectory(prefix="vera-faults-") as scratch:
        where = Path(scratch)
        code = where / "code"
        for part in ("vera", "conf", "scripts"):  # all starts run the same code, whatever happens here meanwhile
            shutil.copytree(ROOT / part, code / part)
        reference = Folder(where / "reference", code)
        process = reference.start(SWEEP)
        text = process.communicate()[1]
        if process.returncode != 0:
            print(f"error: the uninterrupted sweep failed: {text}", file=sys.stderr)
            return 1
        reference_records = reference.records()
        print(f"{time.monotonic() - began:5.0f} s  uninterrupted: {len(reference_records)} records", flush=True)
        cache, servers = None, [Server(code, where, number) for number in range(WORKERS)]
        while test.left:
            folder = Folder(where / f"round{test.counts['rounds']}", code, cache)
            sweep_under_faults(test, folder, reference, servers)
            cache = cache or folder.cache  # the first round pretrains under faults
            done = f"{test.counts['kills']} kills, {test.counts['terms']} SIGTERMs, {test.counts['stops']} suspensions"
            print(f"{time.monotonic() - began:5.0f} s  round {test.counts['rounds']}: {done}", flush=True)
            if test.errors:
                break
        for server in servers:
            server.close()
        how = full_disks(test, where, reference, options.disks)
        same, size = test.counts["records"], len(reference_records)
    print(f"{test.counts['starts']} starts of {WORKERS} workers in {test.counts['rounds']} sweeps of {size} runs:")
    print(
        f"  {test.counts['kills']} SIGKILLs, {test.counts['terms']} SIGTERMs (slowest to leave: {test.slowest:.1f} s), "
        f"{test.counts['stops']} suspensions beyond the timeout of {CLAIM_TIMEOUT} s"
    )
    for what, count in sorted(test.where.items()):
        print(f"    {count:4} {what}")
    print(
        f"  {test.counts['restarts']} times a run went on from its state; {test.counts['taken over by another worker']} claims "
        f"lost; {test.counts['waited for another worker']} times a worker left a run to the other"
    )
    print(f"  {test.counts['disks']} full disks ({how}): {test.counts['errors on full disks']} lines of error")
    print(f"  {same} records compared field by field, each computed once")
    print(f"{time.monotonic() - began:.0f} s: {'FAILED' if test.errors else 'passed'}")
    for error in test.errors:
        print(f"error: {error}", file=sys.stderr)
    return 1 if test.errors else 0


if __name__ == "__main__":
    sys.exit(main())
