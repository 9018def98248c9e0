"""Networks from pixels to logits, their registry and weights, and the frozen view that attacks run on."""

from robust_core.models.frozen import FrozenView, frozen
from robust_core.models.network import Network, Normalize, PooledHead, pooled_features
from robust_core.models.registry import build_model, check_model_name, list_models
from robust_core.models.weights import load_state, load_weights, read_state_dict

__all__ = [
    "FrozenView",
    "Network",
    "Normalize",
    "PooledHead",
    "build_model",
    "check_model_name",
    "frozen",
    "list_models",
    "load_state",
    "load_weights",
    "pooled_features",
    "read_state_dict",
]
