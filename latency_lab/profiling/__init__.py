"""Measuring on a device: environment, protocol, workers, journal."""

from latency_lab.profiling.devices import Device, device
from latency_lab.profiling.doctor import Doctor, doctor
from latency_lab.profiling.journal import Journal
from latency_lab.profiling.protocol import Protocol, Statistic, ratio_interval, statistic
from latency_lab.profiling.runner import Progress, profile
from latency_lab.profiling.tasks import Task, tasks_of
from latency_lab.profiling.transport import LocalWorker, Worker, WorkerDiedError, environment_of, worker_command

__all__ = [
    "Device",
    "Doctor",
    "Journal",
    "LocalWorker",
    "Progress",
    "Protocol",
    "Statistic",
    "Task",
    "Worker",
    "WorkerDiedError",
    "device",
    "doctor",
    "environment_of",
    "profile",
    "ratio_interval",
    "statistic",
    "tasks_of",
    "worker_command",
]
