"""Measuring on a device: environment, protocol, workers, journal."""

from latency_lab.profiling.doctor import Doctor, doctor
from latency_lab.profiling.journal import Journal
from latency_lab.profiling.protocol import Protocol, Statistic, ratio_interval, statistic
from latency_lab.profiling.runner import Progress, Worker, profile
from latency_lab.profiling.tasks import Task, tasks_of
from latency_lab.profiling.transport import LocalWorker, WorkerDiedError, worker_command

__all__ = [
    "Doctor",
    "Journal",
    "LocalWorker",
    "Progress",
    "Protocol",
    "Statistic",
    "Task",
    "Worker",
    "WorkerDiedError",
    "doctor",
    "profile",
    "ratio_interval",
    "statistic",
    "tasks_of",
    "worker_command",
]
