"""Keys of metrics in words and units, for the axes of figures. docs/loggers.md says what each of them is."""

from __future__ import annotations

import re

TOKENS, STEPS = "training tokens", "optimizer steps"
WHOLE = "metric/full_val_"  # beginning of the keys of --full_eval_at
_LABELS = {  # the first pattern that is the whole key decides
    r"metric/train_loss": "training loss (nats per token)",
    r"metric/val_loss@1x": "validation loss (nats per token)",
    r"metric/val_loss@(\d+)x": r"validation loss at \1 times the context (nats per token)",
    r"metric/val_loss_ema_(\w+)@(\d+)x": r"validation loss of the average over \1 tokens (nats per token)",
    r"metric/val_loss_by_position@(\d+)": r"validation loss up to position \1 (nats per token)",
    r"metric/val_loss_by_position_([\w-]+)@(\d+)": r"validation loss of \1 up to position \2 (nats per token)",
    r"metric/val_loss_([\w-]+)_ema_(\w+)@(\d+)x": r"validation loss of \1, average over \2 tokens (nats per token)",
    r"metric/val_loss_([\w-]+)@1x": r"validation loss of \1 (nats per token)",
    r"metric/val_loss_([\w-]+)@(\d+)x": r"validation loss of \1 at \2 times the context (nats per token)",
    r"metric/val_bpb(_ema_\w+)?@(\d+)x": "validation loss (bits per byte)",
    r"metric/val_bpb_([\w-]+)@(\d+)x": r"validation loss of \1 (bits per byte)",
    r"metric/(train|val)_ppl.*": "perplexity",
    r"metric/grad_norm": "norm of the gradient",
    r"metric/weight_learning_rate": "learning rate of matrices",
    r"metric/vector_learning_rate": "learning rate of vectors",
    r"metric/bal_loss": "balance loss (weighted, sum over layers)",
    r"metric/maxvio_batch_avg": "largest load / mean load - 1, mean over layers",
    r"metric/loop_(\d+)_maxvio_batch": r"largest load / mean load - 1, layer \1",
    r"metric/router_z_mean": "mean square of log-sum-exp of router logits",
    r"metric/attn_output_rmsnorm_mean": "root mean square of mixer outputs",
    r"metric/mlp_output_rmsnorm_mean": "root mean square of feed-forward outputs",
    r"metric/attn_outlier_pct_mean": "mixer outputs beyond 5 standard deviations (percent)",
    r"metric/mlp_outlier_pct_mean": "feed-forward outputs beyond 5 standard deviations (percent)",
    r"metric/expert_output_rms_mean": "root mean square of expert outputs",
    r"throughput/tokens_per_sec": "speed (tokens per second)",
    r"throughput/device/tokens_per_sec": "speed (tokens per second and device)",
    r"throughput/device/mfu": "model FLOPs utilisation (share of the peak)",
    r"throughput/device/mfu_palm": "model FLOPs utilisation, PaLM's count (share of the peak)",
    r"time/(\w+)": r"time for \1 (seconds)",
    r"system/(\w+)_gib": r"\1 (GiB)",
    r"system/(\w+)_pct": r"\1 (percent)",
    r"system/(\w+)_w": r"\1 (watts)",
    r"system/(\w+)_c": r"\1 (degrees Celsius)",
}


def axis_label(key: str) -> str:
    """What an axis that shows this metric says."""
    if key.startswith(WHOLE):
        return axis_label(key.replace(WHOLE, "metric/val_")).replace(" (", ", on all data (")
    for pattern, words in _LABELS.items():
        if found := re.fullmatch(pattern, key):
            return found.expand(words).replace("_", " ")
    return re.sub(r"[_/]", " ", key.removeprefix("metric/"))
