"""The job scripts under a real SLURM of one machine, started here: `make test-slurm`."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from test_preemption import arguments, assert_same_fit
from test_restart import files, here, options  # noqa: F401 (a fixture)

ROOT = Path(__file__).parents[1]
NEEDED = ("sbatch", "srun", "scancel", "scontrol", "slurmctld", "slurmd", "munged")
PATH = os.pathsep.join([os.environ["PATH"], "/usr/sbin"])
MISSING = [name for name in NEEDED if shutil.which(name, path=PATH) is None]

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}"),
    pytest.mark.skipif(os.geteuid() != 0, reason="the daemons of SLURM need root"),
]

CONF = """\
ClusterName=one
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
SlurmctldPort=16817
SlurmdPort=16818
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SwitchType=switch/none
MpiDefault=none
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=5
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobRequeue=1
ReturnToService=2
KillWait=5
SlurmctldTimeout=30
SlurmdTimeout=30
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 Boards=1 SocketsPerBoard=1 CoresPerSocket=2 \
ThreadsPerCore=1 RealMemory=4000 State=UNKNOWN
PartitionName=all Nodes={host} Default=YES MaxTime=60 State=UP
"""


def wait(until: Callable[[], bool], seconds: float, what: str) -> None:
    end = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < end, f"no {what} within {seconds} s"
        time.sleep(0.2)


class Slurm:
    """A cluster of this machine alone."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {
            **os.environ,
            "PATH": PATH,
            "SLURM_CONF": str(folder / "slurm.conf"),
            "LIGHTNING": str(Path(sys.executable).with_name("lightning")),
            "OMP_NUM_THREADS": "1",
        }
        host = socket.gethostname().split(".")[0]
        (folder / "slurm.conf").write_text(CONF.format(host=host, folder=folder))
        for name in ("state", "spool"):
            (folder / name).mkdir()
        self.daemons: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        if subprocess.run("munge -n | unmunge", shell=True, capture_output=True).returncode != 0:
            for name, mode in (("/run/munge", 0o755), ("/var/log/munge", 0o700)):
                Path(name).mkdir(exist_ok=True)
                shutil.chown(name, "munge", "munge")
                Path(name).chmod(mode)
            shutil.chown("/var/lib/munge", "munge", "munge")
            identity = ["--reuid=munge", "--regid=munge", "--clear-groups"]
            self._daemon("setpriv", *identity, "munged", "--foreground")
            wait(lambda: Path("/run/munge/munge.socket.2").exists(), 10, "munge")
        self._daemon("slurmctld", "-D", "-c")
        self._daemon("slurmd", "-D")
        wait(lambda: "idle" in self.run("sinfo", "-h", "-o", "%t", check=False), 30, "node")

    def _daemon(self, *command: str) -> None:
        with open(self.folder / f"{command[0]}.out", "wb") as log:
            started = subprocess.Popen(command, env=self.environment, stdout=log, stderr=log)
        self.daemons.append(started)

    def stop(self) -> None:
        self.run("scancel", "-u", "root", check=False)
        time.sleep(2)
        for daemon in reversed(self.daemons):
            daemon.send_signal(signal.SIGTERM)
            daemon.wait(20)

    def run(self, *command: str, check: bool = True) -> str:
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True)
        assert done.returncode == 0 or not check, (command, done.stderr)
        return done.stdout

    def submit(self, script: str, *args: str) -> str:
        """Submit a job script for two tasks without GPUs; the job's id."""
        smaller = ["--ntasks-per-node=2", "--cpus-per-task=1", "--mem=2000", "--time=10"]
        words = ["sbatch", "--parsable", "--gpus-per-node=0", *smaller]
        log = f"--output={self.folder}/%j.log"
        return self.run(*words, log, str(ROOT / "configs" / "slurm" / script), *args).strip()

    def state(self, job: str) -> str:
        found = re.search(r"JobState=(\w+)", self.run("scontrol", "show", "job", job))
        assert found
        return found[1]

    def log(self, job: str) -> str:
        path = self.folder / f"{job}.log"
        return path.read_text() if path.exists() else ""

    def finish(self, job: str, state: str = "COMPLETED") -> None:
        ends = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
        wait(lambda: self.state(job) in ends, 300, f"end of job {job}")
        print(f"job {job}: {self.state(job)}\n{self.log(job)}")
        assert self.state(job) == state, self.log(job)


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    cluster = Slurm(tmp_path_factory.mktemp("slurm"))
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


STEPS = 200


def fit(output: Path) -> list[str]:
    more = ("--trainer.max_steps", STEPS, "--checkpoint.every_n_train_steps", 20)
    return arguments(output, *more, "--data.batch_size", 1, "--trainer.max_epochs", -1)[1:]


@pytest.fixture(scope="module")
def fitted(slurm: Slurm, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("fitted")
    slurm.finish(slurm.submit("fit.sbatch", *fit(output)))
    return output


def test_two_tasks_fit(fitted: Path) -> None:
    assert (fitted / "domain" / "domain.json").is_file()
    assert (
        torch.load(fitted / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == STEPS
    )


def test_a_signalled_fit_is_requeued_and_resumes(
    slurm: Slurm, fitted: Path, tmp_path: Path
) -> None:
    job = slurm.submit("fit.sbatch", *fit(tmp_path))
    wait((tmp_path / "checkpoints" / "last.ckpt").exists, 200, "checkpoint")
    slurm.run("scancel", "--signal=USR1", job)
    wait(lambda: slurm.state(job) == "PENDING", 60, "requeueing")
    stopped = re.search(r"stopped after step (\d+), saved in .*; job \d+ is queued", slurm.log(job))
    saved = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["global_step"]
    assert 0 < saved < STEPS and (stopped is None or int(stopped[1]) == saved)
    # SLURM lets a requeued job wait for two minutes; in the second of the requeueing it would fail,
    # its credential of that second being revoked.
    slurm.run("scontrol", "update", f"JobId={job}", "StartTime=now+2")
    slurm.finish(job)
    assert_same_fit(tmp_path, fitted)


@pytest.fixture(scope="module")
def translated(slurm: Slurm, here: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    output = tmp_path_factory.mktemp("translated")
    slurm.environment["PYTHONPATH"] = str(here)
    slurm.finish(slurm.submit("predict.sbatch", *predict(here, output)))
    return output


def predict(root: Path, output: Path) -> list[str]:
    return options(root, output, "--data.batch_size", 1, "--model.method.steps", 300)[1:]


def test_two_tasks_predict(translated: Path) -> None:
    assert len(list((translated / "images").rglob("*.png"))) == 7
    assert (translated / "metrics.json").is_file()


def test_a_cancelled_predict_is_submitted_again(
    slurm: Slurm,
    here: Path,  # noqa: F811
    translated: Path,
    tmp_path: Path,
) -> None:
    job = slurm.submit("predict.sbatch", *predict(here, tmp_path))
    wait(lambda: any((tmp_path / "images").glob("*.png")), 200, "image")
    slurm.run("scancel", job)
    slurm.finish(job, "CANCELLED")
    assert 0 < len(list((tmp_path / "images").rglob("*.png"))) < 7
    slurm.finish(slurm.submit("predict.sbatch", *predict(here, tmp_path)))
    assert files(tmp_path) == files(translated)
