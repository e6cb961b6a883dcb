"""Accuracy of a model on a split."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from mlpdata.loader import Loader


@torch.inference_mode()
def evaluate(model: nn.Module, loader: Loader, autocast) -> dict[str, float]:
    """Top-1 and top-5 accuracy (shares) and mean cross-entropy over one pass of a loader.

    autocast: a function that gives the context the forward pass runs in.
    """
    was_training = model.training
    model.eval()
    total = torch.zeros(3, dtype=torch.float64, device=loader.device)
    for batch in loader:
        with autocast():
            logits = model(batch.images)
        logits = logits.float()
        loss = F.cross_entropy(logits, batch.labels, reduction="sum")
        found = logits.topk(min(5, logits.shape[1]), dim=1).indices == batch.labels.unsqueeze(1)
        total += torch.stack((loss, found[:, 0].sum(), found.sum())).double()
    model.train(was_training)
    loss, top1, top5 = (total / loader.num_samples).tolist()
    return {"val_loss": loss, "val_top1": top1, "val_top5": top5}
