"""Device profiles: measured tables, fitted predictors, channel steps, fusions. Numpy alone."""

from latency_lab.profiles.blocks import block_family, block_op, predict_block
from latency_lab.profiles.correction import NetworkCorrection
from latency_lab.profiles.device_profile import DeviceProfile, Grid, OpPrediction
from latency_lab.profiles.fusions import Kernel, fuse, fused_network
from latency_lab.profiles.predictor import Predictor
from latency_lab.profiles.roofline import Roofline
from latency_lab.profiles.store import load_profile, shipped_profiles
from latency_lab.profiles.table import LookupTable, Point
from latency_lab.profiles.trees import Trees

__all__ = [
    "DeviceProfile",
    "Grid",
    "Kernel",
    "LookupTable",
    "NetworkCorrection",
    "OpPrediction",
    "Point",
    "Predictor",
    "Roofline",
    "Trees",
    "block_family",
    "block_op",
    "fuse",
    "fused_network",
    "load_profile",
    "predict_block",
    "shipped_profiles",
]
