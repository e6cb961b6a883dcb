"""Shards to batches on a device.

What happens, in the order in which it happens, a module each:

    subset     which samples of the split are loaded, and with which labels
    order      the order of an epoch, and this process's samples of each step
    tiers      where the pixels are during an epoch: resident, pinned or stream, and how a batch gets to the device
    reader     files to payloads, payloads to pixels; jpeg_batch decodes many JPEGs in one call
    loader     the loop over all this, with the augmentation at its end; state says where it is, for a resume
"""

from mlpdata.system.lazy import lazy_names

__getattr__ = lazy_names(__name__, {"load": "loader", "Loader": "loader", "LoadOptions": "options"})
