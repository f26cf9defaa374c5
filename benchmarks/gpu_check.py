"""`make gpu-check`: the GPU kernels' tests and speed on this machine's GPU, within eight minutes.

Needs PyTorch with CUDA, Triton, transformers and pytest, and this checkout on PYTHONPATH (`.:training`), but no
installation and no network. Every section runs in a process of its own with a limit of time, and writes each row as
soon as it is measured: a section that fails or is stopped leaves the others alone and says so.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import torch

from benchmarks.measure import titled_table
from hymate_training.files import write_file, write_json

ROOT = Path(__file__).parents[1]
# seconds; all together stay below eight minutes
BUDGETS = {
    **{"limits": 30, "tests": 100, "compilation": 60, "losses": 30, "scans": 40, "mixers": 30, "models": 60},
    **{"tiles": 40, "cuts": 20, "finetune": 70},
}
PROCESSES = min(8, os.cpu_count() or 1)  # that compile kernels beside each other


def main():
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_check", description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("runs/gpu-check"), help="Folder of JSON and Markdown.")
    parser.add_argument("--data", type=Path, help="Prepared folder of PhysioNet 2012, for the fine-tune.")
    parser.add_argument(
        "--dry-run", action="store_true", help="Run on the CPU in Triton's interpreter, to see that it runs."
    )
    parser.add_argument("--section", choices=BUDGETS, help=argparse.SUPPRESS)  # how it calls itself
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    if args.section:
        run_section(args)
        return
    if not args.dry_run and not torch.cuda.is_available():
        raise SystemExit("PyTorch finds no GPU here; --dry-run tries the script without one")
    started = time.monotonic()
    result = {}
    for section in BUDGETS:
        result[section] = supervise(section, args)
        result["seconds"] = round(time.monotonic() - started)
        write_json(args.output / "gpu-check.json", result)
        write_file(args.output / "gpu-check.md", report(result) + "\n")
        print(f"{section}: {result[section]['status']}, {result[section]['seconds']} s", flush=True)
    print("\n" + report(result))
    failed = [name for name in BUDGETS if not has_passed(result[name])]
    if failed:
        raise SystemExit(f"not passed: {', '.join(failed)}")


def has_passed(section: dict) -> bool:
    rows_passed = all(row.get("passed", True) for row in section["rows"])
    return rows_passed and (section["status"] == "done" or section["status"].startswith("skipped"))


def supervise(section: str, args: argparse.Namespace) -> dict:
    """Runs a section in its own process; its status is "done", "skipped: ...", "stopped ..." or "failed: ..."."""
    rows = args.output / f"{section}.json"
    rows.unlink(missing_ok=True)
    command = [sys.executable, "-m", "benchmarks.gpu_check", "--section", section, "--output", str(args.output)]
    command += ["--data", str(args.data)] if args.data else []
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    if args.dry_run:
        command.append("--dry-run")
        environment |= {"TRITON_INTERPRET": "1", "HYMATE_SCAN_BACKEND": "triton"}
    started = time.monotonic()
    log = args.output / f"{section}.log"
    with log.open("w") as file:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            code = process.wait(None if args.dry_run else BUDGETS[section])
            status = "done" if code == 0 else f"failed: {log.name} ends with {last_line(log)!r}"
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # with what it started, which would disturb the next section
            process.wait()
            status = f"stopped after {BUDGETS[section]} s"
    found = json.loads(rows.read_text()) if rows.exists() else []
    if found and "skipped" in found[0]:
        status, found = f"skipped: {found[0]['skipped']}", []
    return {"status": status, "seconds": round(time.monotonic() - started, 1), "rows": found}


def last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1][:300] if lines else ""


def run_section(args: argparse.Namespace):
    """Writes the rows of a section so far after each of them."""
    rows = []
    for row in rows_of(args):
        rows.append(row)
        print(row, flush=True)
        write_json(args.output / f"{args.section}.json", rows)


def rows_of(args: argparse.Namespace):
    if args.section == "tests":
        return tests(args)
    if args.section == "finetune":
        return finetune(args)
    if args.section == "compilation":
        return compilation(args)
    from benchmarks import gpu  # noqa: PLC0415 - what it imports has to fit this machine

    device = torch.device("cpu" if args.dry_run else "cuda:0")
    if args.section == "scans":
        (limits,) = json.loads((args.output / "limits.json").read_text())
        return gpu.scans(device, args.dry_run, limits["terabytes_per_second"] * 1e12)
    return getattr(gpu, args.section)(device, args.dry_run)


def tests(args: argparse.Namespace):
    """The cases that run in Triton's interpreter on machines without a GPU, and larger ones, on the GPU. Several
    processes share them, since most of the time is the compiler's; each yields a row as soon as it ends."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(ROOT)]
    command += ["--override-ini=addopts=--import-mode=importlib", "--override-ini=filterwarnings="]
    command += ["--show-capture=no", "--noconftest"]  # it imports what training needs
    environment = {**os.environ, "HYMATE_TEST_DEVICE": "cpu" if args.dry_run else "cuda", "COLUMNS": "600"}
    chosen = ["tests/support/triton_cases.py", *(["-k", "state_carries_over"] if args.dry_run else [])]
    listed = subprocess.run(
        [*command, "--collect-only", *chosen], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    cases = [line for line in listed.stdout.splitlines() if "::" in line]
    if listed.returncode or not cases:
        yield {"tests": (listed.stderr or listed.stdout).strip()[-300:], "passed": False}
        return
    parts = [cases[at::PROCESSES] for at in range(min(PROCESSES, len(cases)))]
    pool = ThreadPoolExecutor(len(parts))
    runs = [
        pool.submit(
            subprocess.run, [*command, *part], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
        )
        for part in parts
    ]
    for run in as_completed(runs):
        done = run.result()
        print(done.stdout[-8000:], done.stderr[-2000:])
        lines = done.stdout.strip().splitlines() or [done.stderr[-300:]]
        yield {"tests": lines[-1], "passed": done.returncode == 0}
        for line in lines:
            if line.startswith(("FAILED", "ERROR")):
                yield {"tests": line, "passed": False}


def compilation(args: argparse.Namespace):
    """Compiles what the next sections run, several kernels beside each other: they would do it one by one."""
    if args.dry_run:
        yield {"skipped": "Triton's interpreter compiles nothing"}
        return
    started = time.monotonic()
    program = "import sys, torch; from benchmarks import gpu; "
    program += "gpu.compile_kernels(torch.device('cuda:0'), int(sys.argv[1]), int(sys.argv[2]))"
    parts = [
        subprocess.Popen([sys.executable, "-c", program, str(part), str(PROCESSES)], cwd=ROOT)
        for part in range(PROCESSES)
    ]
    failed = sum(part.wait() != 0 for part in parts)
    yield {"processes": PROCESSES, "seconds": time.monotonic() - started, "failed": failed, "passed": not failed}


def finetune(args: argparse.Namespace):
    """PhysioNet 2012 in-hospital mortality, end to end, as the command line does it: the recipe's 40 epochs with CUDA
    graphs; two without, for the seconds of an epoch."""
    if args.data is None:
        yield {"skipped": "no prepared folder of PhysioNet 2012 was given (--data)"}
        return
    try:
        import hymate_training.fitting.finetuning  # noqa: F401, PLC0415 - is it there with all it needs?
    except ImportError as error:
        yield {"skipped": f"{error}"}
        return
    command = [sys.executable, "-m", "hymate_training", "finetune", "--data", str(args.data)]
    command += ["--task", "in_hospital_mortality", "--recipe", "physionet2012"]
    graphs = ["--cuda-graphs", "--dataloader-num-workers", "2"]
    for way, options in {"graphs": graphs, "plain, 2 epochs": ["--epochs", "2"]}.items():
        output = args.output / way.partition(",")[0]
        started = time.monotonic()
        subprocess.run([*command, "--output", str(output), *options], cwd=ROOT, check=True)
        history = json.loads((output / "training_run.json").read_text())["history"]
        yield {
            **{"way": way, "seconds": time.monotonic() - started, "training_seconds_of_last": history[-1]["seconds"]},
            **{"best_auroc": max(entry["auroc"] for entry in history), "first_loss": history[0]["train_loss"]},
        }


def report(result: dict) -> str:
    """A page of tables, one per section, each under its status."""
    parts = [f"# GPU check\n\n{result['seconds']} s in all."]
    for section in BUDGETS:
        found = result.get(section)
        if found is None:
            continue
        rows = found["rows"]
        header = list(dict.fromkeys(name for row in rows for name in row))
        table = titled_table(section, header, [[row.get(name) for name in header] for row in rows]) if rows else ""
        parts.append(
            "\n\n".join(filter(None, [table or f"### {section}", f"{found['status']}, {found['seconds']} s"]))
        )
    return "\n\n".join(parts)


if __name__ == "__main__":
    main()
